package main

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"slices"
	"text/tabwriter"
	"time"
)

// unit is what the numbers of a row are.
type unit string

const (
	unitSeconds unit = "s"
	unitBytes   unit = "B"
	unitCount   unit = ""
	unitRate    unit = "1/s"
)

// text writes a number of the unit for a reader: milliseconds, megabytes of 10^6 bytes.
func (u unit) text(v float64) string {
	switch {
	case u == unitSeconds && v >= 10:
		return fmt.Sprintf("%.1f s", v)
	case u == unitSeconds:
		return fmt.Sprintf("%.1f ms", v*1e3)
	case u == unitBytes:
		return fmt.Sprintf("%.1f MB", v/1e6)
	case u == unitRate:
		return fmt.Sprintf("%.0f/s", v)
	}
	return fmt.Sprintf("%g", v)
}

// sample is a series of measurements of one thing, in its row's unit.
type sample []float64

func (s *sample) add(d time.Duration) { *s = append(*s, d.Seconds()) }

// quantile is the nearest rank, so that p99 of fewer than a hundred measurements is the worst of them.
func (s sample) quantile(q float64) float64 {
	sorted := slices.Sorted(slices.Values(s))
	return sorted[min(len(sorted), max(1, int(math.Ceil(q*float64(len(sorted))))))-1]
}

func (s sample) median() float64 { return s.quantile(0.5) }

// row is one line of the table: what was measured, beside a peer's in the same run or beside nothing.
type row struct {
	name  string
	unit  unit
	ours  sample
	peer  string // whom it is compared with; empty for nobody
	base  sample // the peer's; empty when the peer could not be had, for a reason that notes tells
	goal  float64
	least bool // our median has to reach the goal; otherwise it must not exceed it, nor the ratio to a peer
	notes string
}

// value is what the goal is about: the ratio of the medians where there is a peer, else our median.
func (r row) value() (v float64, ok bool) {
	switch {
	case len(r.ours) == 0 || r.peer != "" && len(r.base) == 0:
		return 0, false
	case r.peer != "":
		return r.ours.median() / r.base.median(), true
	}
	return r.ours.median(), true
}

// verdict is "yes", "NO", or "-" for a row without a goal and one that could not be measured.
func (r row) verdict() string {
	v, ok := r.value()
	switch {
	case !ok || r.goal == 0:
		return "-"
	case r.least && v < r.goal, !r.least && v > r.goal:
		return "NO"
	}
	return "yes"
}

func (r row) goalText() string {
	sign := "≤"
	if r.least {
		sign = "≥"
	}
	switch {
	case r.goal == 0:
		return "-"
	case r.peer != "":
		return fmt.Sprintf("%s %.2f", sign, r.goal)
	}
	return sign + " " + r.unit.text(r.goal)
}

func printTable(to io.Writer, rows []row) error {
	w := tabwriter.NewWriter(to, 2, 0, 2, ' ', 0)
	fmt.Fprintln(w, "measure\tn\tmedian\tp99\tpeer\tmedian\tp99\tratio\tgoal\tmet\tnotes")
	cells := func(r row, s sample) (median, p99 string) {
		if len(s) == 0 {
			return "-", "-"
		}
		return r.unit.text(s.median()), r.unit.text(s.quantile(0.99))
	}
	for _, r := range rows {
		median, p99 := cells(r, r.ours)
		base, baseP99 := cells(r, r.base)
		peer, ratio := "-", "-"
		if r.peer != "" {
			peer = r.peer
			if v, ok := r.value(); ok {
				ratio = fmt.Sprintf("%.2f", v)
			}
		}
		fmt.Fprintf(w, "%s\t%d\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n",
			r.name, len(r.ours), median, p99, peer, base, baseP99, ratio, r.goalText(), r.verdict(), r.notes)
	}
	return w.Flush()
}

// report is the file that -json writes: every single measurement, in seconds and bytes.
type report struct {
	At      time.Time   `json:"at"`
	Machine string      `json:"machine"`
	Rows    []rowReport `json:"rows"`
}

type rowReport struct {
	Name  string  `json:"name"`
	Unit  unit    `json:"unit"`
	Ours  sample  `json:"ours"`
	Peer  string  `json:"peer,omitempty"`
	Base  sample  `json:"base,omitempty"`
	Value float64 `json:"value,omitempty"` // ratio of the medians, or our median
	Goal  float64 `json:"goal,omitempty"`
	Met   string  `json:"met"`
	Notes string  `json:"notes,omitempty"`
}

func writeReport(to io.Writer, machine string, at time.Time, rows []row) error {
	out := report{At: at.UTC(), Machine: machine, Rows: []rowReport{}}
	for _, r := range rows {
		v, _ := r.value()
		out.Rows = append(out.Rows, rowReport{r.name, r.unit, r.ours, r.peer, r.base, v, r.goal, r.verdict(), r.notes})
	}
	e := json.NewEncoder(to)
	e.SetIndent("", "\t")
	return e.Encode(out)
}
