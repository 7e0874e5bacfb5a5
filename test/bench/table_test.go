package main

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"
)

func TestQuantile(t *testing.T) {
	var s sample
	for _, v := range []float64{5, 1, 4, 2, 3} {
		s = append(s, v)
	}
	for q, want := range map[float64]float64{0.01: 1, 0.5: 3, 0.8: 4, 0.99: 5, 1: 5} {
		if got := s.quantile(q); got != want {
			t.Errorf("quantile %v is %v, want %v", q, got, want)
		}
	}
	if got := (sample{7}).quantile(0.99); got != 7 {
		t.Errorf("p99 of one measurement is %v", got)
	}
}

func TestVerdicts(t *testing.T) {
	for _, c := range []struct {
		row  row
		met  string
		goal string
	}{
		{row{ours: sample{1}, peer: "p", base: sample{4}, goal: 0.25}, "yes", "≤ 0.25"},
		{row{ours: sample{1.01}, peer: "p", base: sample{4}, goal: 0.25}, "NO", "≤ 0.25"},
		{row{ours: sample{1}, peer: "p", base: sample{4}}, "-", "-"},
		{row{ours: sample{1}, peer: "p", goal: 0.25}, "-", "≤ 0.25"}, // the peer could not be had
		{row{peer: "p", base: sample{1}, goal: 0.25}, "-", "≤ 0.25"},
		{row{ours: sample{0.9}, unit: unitSeconds, goal: 1}, "yes", "≤ 1000.0 ms"},
		{row{ours: sample{25e6}, unit: unitBytes, goal: 24e6}, "NO", "≤ 24.0 MB"},
		{row{ours: sample{499}, goal: 500, least: true}, "NO", "≥ 500"},
		{row{ours: sample{500}, goal: 500, least: true}, "yes", "≥ 500"},
	} {
		if got := c.row.verdict(); got != c.met {
			t.Errorf("%+v: verdict %s, want %s", c.row, got, c.met)
		}
		if got := c.row.goalText(); got != c.goal {
			t.Errorf("%+v: goal %s, want %s", c.row, got, c.goal)
		}
	}
}

func TestTableAndReport(t *testing.T) {
	rows := []row{
		{name: "fast", unit: unitSeconds, ours: sample{0.010, 0.011, 0.030}, peer: "docker", base: sample{0.022}, goal: 1},
		against("lonely", result{name: "cradle", sample: sample{0.5}}, result{name: "docker", err: errors.New("not\ninstalled")}, 0.5),
		{name: "size", unit: unitBytes, ours: sample{30e6}, goal: 24e6},
	}
	var table strings.Builder
	if err := printTable(&table, rows); err != nil {
		t.Fatal(err)
	}
	for i, want := range [][]string{
		{"measure", "median", "p99", "ratio", "goal", "met"},
		{"fast", "3", "11.0 ms", "30.0 ms", "docker", "22.0 ms", "0.50", "≤ 1.00", "yes"},
		{"lonely", "500.0 ms", "docker", "-", "not measured: not installed"},
		{"size", "30.0 MB", "≤ 24.0 MB", "NO"},
	} {
		line := strings.Split(table.String(), "\n")[i]
		for _, w := range want {
			if !strings.Contains(line, w) {
				t.Errorf("line %q lacks %q", line, w)
			}
		}
	}
	var file strings.Builder
	if err := writeReport(&file, "here", time.Unix(0, 0), rows); err != nil {
		t.Fatal(err)
	}
	var back report
	if err := json.Unmarshal([]byte(file.String()), &back); err != nil {
		t.Fatal(err)
	}
	if len(back.Rows) != 3 || len(back.Rows[0].Ours) != 3 || back.Rows[0].Value != 0.5 || back.Rows[1].Met != "-" || back.Rows[2].Met != "NO" {
		t.Errorf("the report says %+v", back)
	}
}

func TestSumFields(t *testing.T) {
	const text = "00400000-7ff0 ---p 00000000 00:00 0 [rollup]\nRss:   900 kB\nPss:   300 kB\nPrivate_Clean:  4 kB\nPrivate_Dirty: 20 kB\n"
	if v, err := sumFields(text, "Private_Clean:", "Private_Dirty:"); err != nil || v != 24<<10 {
		t.Errorf("private is %v, %v", v, err)
	}
	if _, err := sumFields(text, "Swap:"); err == nil {
		t.Error("a field that is not there is no error")
	}
}
