package main

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
)

// runner is a contestant that notes its turns in a common list.
func runner(turns *[]string, name string, failAt int) contestant {
	n := 0
	return contestant{name: name, once: func(context.Context) error {
		*turns = append(*turns, name)
		if n++; n == failAt {
			return errors.New("fell")
		}
		return nil
	}}
}

func TestRaceTakesTurns(t *testing.T) {
	var turns []string
	prepared := 0
	ours := runner(&turns, "a", 0)
	ours.ready = func(context.Context) error { prepared++; return nil }
	results, err := race(context.Background(), 3, ours, runner(&turns, "b", 0), contestant{name: "c", err: errors.New("not here")})
	if err != nil {
		t.Fatal(err)
	}
	if want := strings.Fields("a b b a a b a b"); !slices.Equal(turns, want) {
		t.Errorf("turns were %v, want %v", turns, want)
	}
	if len(results[0].sample) != 3 || len(results[1].sample) != 3 { // the first turn is not counted
		t.Errorf("measured %d and %d times, want 3", len(results[0].sample), len(results[1].sample))
	}
	if results[2].err == nil || len(results[2].sample) != 0 {
		t.Errorf("who is not there has %+v", results[2])
	}
	if prepared != 4*3 {
		t.Errorf("prepared %d times, want before every turn", prepared)
	}
}

func TestRaceGoesOnWithoutAPeer(t *testing.T) {
	var turns []string
	results, err := race(context.Background(), 3, runner(&turns, "a", 0), runner(&turns, "b", 3))
	if err != nil || len(results[0].sample) != 3 {
		t.Errorf("the race of the other: %+v, %v", results[0], err)
	}
	if results[1].err == nil || len(results[1].sample) != 0 { // half a sample would be compared like a whole one
		t.Errorf("who fell has %+v", results[1])
	}
}

func TestRaceEndsWithOurs(t *testing.T) {
	var turns []string
	ours := runner(&turns, "a", 2)
	ours.ours = true
	if _, err := race(context.Background(), 3, ours, runner(&turns, "b", 0)); err == nil || err.Error() != "a: fell" {
		t.Errorf("the error is %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := race(ctx, 3, runner(&turns, "a", 0)); !errors.Is(err, context.Canceled) {
		t.Errorf("an interrupted race ends with %v", err)
	}
}

func TestAllIsBounded(t *testing.T) {
	var up, most int
	lock := make(chan struct{}, 1)
	err := all(context.Background(), 20, 3, func(context.Context, int) error {
		lock <- struct{}{}
		up++
		most = max(most, up)
		<-lock
		lock <- struct{}{}
		up--
		<-lock
		return nil
	})
	if err != nil || most > 3 {
		t.Errorf("%d at once, %v", most, err)
	}
	want := errors.New("no")
	if err := all(context.Background(), 20, 3, func(_ context.Context, i int) error {
		if i == 5 {
			return want
		}
		return nil
	}); !errors.Is(err, want) {
		t.Errorf("the error is %v", err)
	}
}

func TestChoose(t *testing.T) {
	want := 0
	for _, g := range groups() {
		if !g.asked {
			want++
		}
	}
	usual, err := choose("")
	if err != nil || slices.ContainsFunc(usual, func(g group) bool { return g.asked }) || len(usual) != want {
		t.Errorf("the usual ones are %d, %v", len(usual), err)
	}
	two, err := choose("many,exec")
	if err != nil || len(two) != 2 || two[0].name != "exec" {
		t.Errorf("chosen were %v, %v", two, err)
	}
	if _, err := choose("exec,nonsense"); err == nil {
		t.Error("an unknown name is no error")
	}
}
