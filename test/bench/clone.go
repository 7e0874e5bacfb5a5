package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"time"
)

// clone measures for how long the source of a clone stands still: a redis with some 256 MB in it.
func clone(ctx context.Context, e env) (_ []row, err error) {
	const name = "clone"
	ours, err := startCradle(ctx, e, name, poolOf(0)...)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, ours.stop()) }()
	if err := fillRedis(ctx, e, ours); err != nil {
		return nil, err
	}
	var pauses, whole sample
	for range e.runs {
		began := time.Now()
		id, pause, err := cloneOf(ctx, socket(e, name), "source")
		if err != nil {
			return nil, err
		}
		whole.add(time.Since(began))
		pauses.add(pause)
		if err := ours.do(ctx, "rm", "-f", id); err != nil {
			return nil, err
		}
	}
	return []row{
		{name: "pause of a 256 MB redis during clone", unit: unitSeconds, ours: pauses, goal: 0.060},
		{name: "clone of it, until it goes on", unit: unitSeconds, ours: whole},
	}, nil
}

// fillRedis runs a redis called source that holds 256 MB.
func fillRedis(ctx context.Context, e env, s *side) error {
	if err := s.do(ctx, "load", "-q", "-i", filepath.Join(e.images, "redis.tar")); err != nil {
		return err
	}
	if err := s.do(ctx, "run", "-d", "--name", "source", "redis", "redis-server", "--save", ""); err != nil {
		return err
	}
	_, err := s.command(ctx, "exec", "source", "sh", "-ec", `
		until redis-cli ping >/dev/null 2>&1; do sleep 0.1; done
		redis-cli eval "for i = 1, 64 do redis.call('set', 'k' .. i, string.rep('abcdefgh', 524288)) end" 0 >/dev/null
		redis-cli info memory | grep used_memory:`)
	return err
}

// cloneOf clones a container by the daemon's interface, which tells for how long the source stood still.
func cloneOf(ctx context.Context, socket, source string) (id string, pause time.Duration, err error) {
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://cradle/cradle/v1/containers/"+source+"/clone", nil)
	if err != nil {
		return "", 0, err
	}
	answer, err := client.Do(request)
	if err != nil {
		return "", 0, err
	}
	defer answer.Body.Close()
	var report struct {
		IDs        []string
		PauseNanos int64
		Message    string `json:"message"`
	}
	if err := json.NewDecoder(answer.Body).Decode(&report); err != nil {
		return "", 0, err
	}
	if len(report.IDs) != 1 || report.PauseNanos <= 0 {
		return "", 0, fmt.Errorf("clone: %s %s", answer.Status, report.Message)
	}
	return report.IDs[0], time.Duration(report.PauseNanos), nil
}

// warm measures how long a redis takes from `run` to its first PONG: from a warm image, and cold from a machine of the pool.
func warm(ctx context.Context, e env) (_ []row, err error) {
	const name = "warm"
	ours, err := startCradle(ctx, e, name, poolOf(1)...)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, ours.stop()) }()
	if err := ours.do(ctx, "load", "-q", "-i", filepath.Join(e.images, "redis.tar")); err != nil {
		return nil, err
	}
	start := func(box string, words ...string) contestant {
		c := contestant{name: box, ours: true}
		c.ready = func(ctx context.Context) error {
			left, err := ours.command(ctx, "ps", "-aq", "--filter", "name="+box)
			if err == nil && left != "" {
				err = ours.do(ctx, "rm", "-f", box)
			}
			return errors.Join(err, awaitPool(ctx, socket(e, name), 1))
		}
		c.once = func(ctx context.Context) error {
			words := append(append([]string{"run", "-d", "--name", box, "-p", "127.0.0.1::6379"}, words...), "redis", "redis-server", "--protected-mode", "no")
			if err := ours.do(ctx, words...); err != nil {
				return err
			}
			at, err := ours.command(ctx, "port", box, "6379")
			if err != nil {
				return err
			}
			return pong(ctx, strings.TrimSpace(at))
		}
		return c
	}
	warm, cold := start("warm", "--warm", "--warm-ready", "redis-cli ping"), start("cold")
	if err := warm.once(ctx); err != nil { // has the image made
		return nil, err
	}
	if err := awaitWarm(ctx, filepath.Join(e.dir, name, "root", "warm")); err != nil {
		return nil, err
	}
	results, err := race(ctx, e.runs, warm, cold)
	if err != nil {
		return nil, err
	}
	return []row{against("redis warm image: run to PONG, against cold container start in the same VM", results[0], results[1], 0.2)}, nil
}

// awaitWarm waits until there is a warm image in dir.
func awaitWarm(ctx context.Context, dir string) error {
	for began := time.Now(); time.Since(began) < poolPatience; {
		found, err := filepath.Glob(filepath.Join(dir, "*", "manifest"))
		if err != nil {
			return err
		}
		for _, f := range found {
			if !strings.HasPrefix(filepath.Base(filepath.Dir(f)), ".") { // those are not finished
				return nil
			}
		}
		if failed, _ := filepath.Glob(filepath.Join(dir, "*.failed")); len(failed) > 0 {
			return fmt.Errorf("no warm image: %s", failed[0])
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return errors.New("no warm image is made")
}

// pong waits for a redis's answer at an address.
func pong(ctx context.Context, at string) error {
	var last error
	for began := time.Now(); time.Since(began) < time.Minute && ctx.Err() == nil; time.Sleep(2 * time.Millisecond) {
		if last = ping(ctx, at); last == nil {
			return nil
		}
	}
	return fmt.Errorf("no PONG from %s: %w", at, last)
}

func ping(ctx context.Context, at string) error {
	conn, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "tcp", at)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err
	}
	if _, err := conn.Write([]byte("PING\r\n")); err != nil {
		return err
	}
	answer := make([]byte, 7)
	n, err := conn.Read(answer)
	if err == nil && string(answer[:n]) != "+PONG\r\n" {
		err = fmt.Errorf("it says %q", answer[:n])
	}
	return err
}
