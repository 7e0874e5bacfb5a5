package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"
)

// many counts how many sandboxes are alive together on this machine: started some at a time, then asked one and all.
func many(ctx context.Context, e env) (rows []row, err error) {
	s, err := startCradle(ctx, e, "many", restoring()...)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.stop()) }()
	if err := templated(ctx, e, s, "many"); err != nil {
		return nil, err
	}
	before, err := available()
	if err != nil {
		return nil, err
	}
	began := time.Now()
	if err := fillUp(ctx, s, e.sandboxes, smallFlags()...); err != nil {
		return nil, err
	}
	started := time.Since(began)
	answered := 0
	began = time.Now()
	results := make([]error, e.sandboxes)
	_ = all(ctx, e.sandboxes, atOnce, func(ctx context.Context, i int) error {
		results[i] = s.do(ctx, "exec", fmt.Sprintf("box%d", i), "true")
		return nil // the others are asked all the same
	})
	asked := time.Since(began)
	for _, err := range results {
		if err == nil {
			answered++
		}
	}
	after, err := available()
	if err != nil {
		return nil, err
	}
	notes := because(errors.Join(results...))
	if notes == "" {
		notes = fmt.Sprintf("started in %.0f s, asked in %.0f s", started.Seconds(), asked.Seconds())
	}
	return []row{
		{name: "sandboxes alive, answering", unit: unitCount, ours: sample{float64(answered)}, goal: float64(e.sandboxes), least: true, notes: notes},
		{name: "  host memory they take", unit: unitBytes, ours: sample{before - after}, notes: fmt.Sprintf("%s each", unitBytes.text((before-after)/float64(e.sandboxes)))},
	}, nil
}

// available is the memory of the machine that could be had, bytes.
func available() (float64, error) {
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	return sumFields(string(text), "MemAvailable:")
}
