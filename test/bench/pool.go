package main

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"path/filepath"
	"time"
)

// pools measures `run --rm busybox true` with a virtual machine that is ready, and with one restored on the spot.
func pools(ctx context.Context, e env) ([]row, error) {
	hit, err := poolRuns(ctx, e, "hit", "2", 1)
	if err != nil {
		return nil, err
	}
	restored, err := poolRuns(ctx, e, "restore", "restore", 0)
	if err != nil {
		return nil, err
	}
	return []row{
		{name: "run --rm busybox true, pool hit", ours: hit},
		{name: "run --rm busybox true, restored on the spot", ours: restored},
	}, nil
}

// poolRuns times runs against a daemon with this --pool; before each, at least so many machines are ready, and the
// template is loaded.
func poolRuns(ctx context.Context, e env, name, pool string, least int) (sample, error) {
	d, err := startDaemon(ctx, e, name, "--pool", pool)
	if err != nil {
		return nil, err
	}
	defer d.stop()
	if err := d.cradle(ctx, "load", "-q", "-i", filepath.Join(e.images, "busybox.tar")); err != nil {
		return nil, err
	}
	once := func() error { return d.cradle(ctx, "run", "--rm", "busybox", "true") }
	if err := once(); err != nil {
		return nil, err
	}
	var s sample
	for range e.runs {
		if err := awaitPool(ctx, filepath.Join(e.dir, name, "run", "cradle.sock"), least); err != nil {
			return nil, err
		}
		one, err := timed(1, once)
		if err != nil {
			return nil, err
		}
		s = append(s, one...)
	}
	return s, nil
}

// poolPatience bounds the making of a template and of what is kept ready.
const poolPatience = 2 * time.Minute

// awaitPool waits until the one size there is has its template and so many machines ready.
func awaitPool(ctx context.Context, socket string, least int) error {
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}}
	for began := time.Now(); time.Since(began) < poolPatience; time.Sleep(20 * time.Millisecond) {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://cradle/cradle/v1/pool", nil)
		if err != nil {
			return err
		}
		answer, err := client.Do(request)
		if err != nil {
			return err
		}
		var status struct {
			Classes []struct {
				Template bool
				Ready    int
			}
		}
		err = json.NewDecoder(answer.Body).Decode(&status)
		answer.Body.Close()
		if err != nil {
			return err
		}
		if len(status.Classes) == 1 && status.Classes[0].Template && status.Classes[0].Ready >= least {
			return nil
		}
	}
	return errors.New("the pool does not fill")
}
