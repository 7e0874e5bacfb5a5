// Bench measures what cradle promises and prints one table: medians of several runs beside a peer's in the same run on
// the same machine, as ratios, because absolute times on a shared machine mean little.
//
// `make bench` runs it: it builds what it measures and installs the peers (hack/bench.sh).
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// env is what a measurement works with.
type env struct {
	bin, guest, images, peers string // directories: our programs, a guest, test images, the peers' programs
	dir                       string // scratch, removed at the end
	runs                      int
}

// sample is a series of measurements of one thing.
type sample []time.Duration

func (s sample) quantile(q float64) time.Duration {
	sorted := slices.Sorted(slices.Values(s))
	return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]
}

func (s sample) median() time.Duration { return s.quantile(0.5) }

// row is one line of the table.
type row struct {
	name  string
	ours  sample
	peer  string // what it is compared with; empty for a goal in absolute terms
	base  sample
	goal  float64 // of the ratio, or of our median in seconds when there is no peer
	notes string
}

// bench is one measurement: it returns the rows it fills.
type bench struct {
	name string
	run  func(ctx context.Context, e env) ([]row, error)
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	var e env
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.StringVar(&e.bin, "bin", "bin", "directory of cradle's programs")
	flags.StringVar(&e.guest, "guest", "out/guest", "directory of the guest's kernel and initrd")
	flags.StringVar(&e.images, "images", "out/images", "directory of the test images")
	flags.StringVar(&e.peers, "peers", "", "directory of containerd and ctr; without it their rows are left out")
	flags.IntVar(&e.runs, "n", 10, "runs of each measurement")
	only := flags.String("only", "", "comma-separated names of measurements; all when empty")
	if err := flags.Parse(args); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "cradle-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	e.dir = dir
	var rows []row
	for _, b := range []bench{{"boot", boot}, {"load", load}, {"run", runs}, {"pool", pools}} {
		if *only != "" && !slices.Contains(strings.Split(*only, ","), b.name) {
			continue
		}
		fmt.Fprintf(os.Stderr, "measuring %s\n", b.name)
		r, err := b.run(ctx, e)
		if err != nil {
			return fmt.Errorf("%s: %w", b.name, err)
		}
		rows = append(rows, r...)
	}
	return print(rows)
}

func print(rows []row) error {
	w := tabwriter.NewWriter(os.Stdout, 2, 0, 2, ' ', 0)
	fmt.Fprintln(w, "measure\tn\tmedian\tp99\tpeer\tmedian\tratio\tgoal\tmet\tnotes")
	ms := func(d time.Duration) string { return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond)) }
	for _, r := range rows {
		peer, base, ratio := "-", "-", "-"
		value, goal := r.ours.median().Seconds(), fmt.Sprintf("%.2g s", r.goal)
		if len(r.base) > 0 {
			value = float64(r.ours.median()) / float64(r.base.median())
			peer, base, ratio, goal = r.peer, ms(r.base.median()), fmt.Sprintf("%.2f", value), fmt.Sprintf("%.2f", r.goal)
		}
		met := "yes"
		switch {
		case r.goal == 0:
			goal, met = "-", "-"
		case value > r.goal:
			met = "NO"
		}
		fmt.Fprintf(w, "%s\t%d\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n",
			r.name, len(r.ours), ms(r.ours.median()), ms(r.ours.quantile(0.99)), peer, base, ratio, goal, met, r.notes)
	}
	return w.Flush()
}

// timed runs f n times.
func timed(n int, f func() error) (sample, error) {
	var s sample
	for range n {
		began := time.Now()
		if err := f(); err != nil {
			return nil, err
		}
		s = append(s, time.Since(began))
	}
	return s, nil
}
