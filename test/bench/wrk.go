package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
)

// asked is what wrk found out.
type asked struct {
	requests    int
	rate        float64 // requests a second
	median, p99 time.Duration
}

// ask has wrk ask a server for so long. That it did not answer, or not with success, is an error.
func (s *webServer) ask(ctx context.Context, long time.Duration) (asked, error) {
	words := append(append([]string{}, s.from...), "wrk", "--threads", "1", "--connections", fmt.Sprint(webConnections),
		"--duration", fmt.Sprintf("%.0fs", long.Seconds()), "--timeout", "30s", "--latency", s.url)
	text, err := output(ctx, ownEnv(), words[0], words[1:]...)
	if err != nil {
		return asked{}, err
	}
	a, err := readWrk(text)
	if err != nil {
		return a, fmt.Errorf("%s: %w: %s", s.name, err, tail(text, 300))
	}
	return a, nil
}

// readWrk reads wrk's report (4.1). It tells of errors only when there were some.
func readWrk(text string) (a asked, err error) {
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		switch {
		case f[0] == "50%":
			a.median, err = time.ParseDuration(f[1])
		case f[0] == "99%":
			a.p99, err = time.ParseDuration(f[1])
		case strings.HasPrefix(f[1], "requests"):
			_, err = fmt.Sscan(f[0], &a.requests)
		case f[0] == "Requests/sec:":
			_, err = fmt.Sscan(f[1], &a.rate)
		case f[0] == "Socket" || f[0] == "Non-2xx":
			err = errors.New("requests failed")
		}
		if err != nil {
			return a, err
		}
	}
	if a.requests == 0 || a.rate == 0 || a.median == 0 || a.p99 == 0 {
		return a, errors.New("wrk has measured nothing")
	}
	return a, nil
}
