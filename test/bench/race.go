package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// contestant is one of those that do the same thing.
type contestant struct {
	name string
	ours bool  // its failure ends the race; a peer that fails is out
	err  error // why it cannot take part; nil when it can
	// ready waits, untimed, for what the last turn has left behind to be over, and for what the next one needs. It is called
	// before every turn of anybody's, so that nobody's aftermath is another's delay. May be nil.
	ready func(ctx context.Context) error
	once  func(ctx context.Context) error // what is timed
}

// result is what a contestant has to show. A peer that failed has no sample and an error.
type result struct {
	name   string
	sample sample
	err    error
}

// race lets all of them do it n times, in turns, so that what else the machine does meets everyone alike. A first turn
// of each, which finds cold caches, is not counted.
func race(ctx context.Context, n int, all ...contestant) ([]result, error) {
	results := make([]result, len(all))
	for i, c := range all {
		results[i] = result{name: c.name, err: c.err}
	}
	for turn := range n + 1 {
		for k := range all {
			i := (k + turn) % len(all) // nobody is always the one after the same other
			if err := prepare(ctx, all, results); err != nil {
				return nil, err
			}
			if results[i].err != nil {
				continue
			}
			began := time.Now()
			err := all[i].once(ctx)
			took := time.Since(began)
			if err := record(ctx, all[i], &results[i], err); err != nil {
				return nil, err
			}
			if turn > 0 && err == nil {
				results[i].sample.add(took)
			}
		}
	}
	return results, nil
}

// prepare waits until everybody who is still in the race is ready.
func prepare(ctx context.Context, all []contestant, results []result) error {
	for i, c := range all {
		if c.ready == nil || results[i].err != nil {
			continue
		}
		if err := record(ctx, c, &results[i], c.ready(ctx)); err != nil {
			return err
		}
	}
	return nil
}

// record takes a peer that failed out of the race, and returns the error when it ends the race.
func record(ctx context.Context, c contestant, r *result, err error) error {
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil && c.ours:
		return fmt.Errorf("%s: %w", c.name, err)
	case err != nil:
		r.sample, r.err = nil, err
	}
	return nil
}

// against makes the row that holds ours against a peer's.
func against(name string, ours, peer result, goal float64) row {
	r := row{name: name, unit: unitSeconds, ours: ours.sample, peer: peer.name, base: peer.sample, goal: goal}
	r.notes = because(errors.Join(ours.err, peer.err))
	return r
}

// because is why something was not measured, in one line of the table.
func because(err error) string {
	if err == nil {
		return ""
	}
	text := []rune(err.Error())
	for i, c := range text {
		if c < ' ' {
			text[i] = ' '
		}
	}
	if len(text) > 160 {
		text = append(text[:160], '…')
	}
	return "not measured: " + string(text)
}
