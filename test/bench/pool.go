package main

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"strconv"
	"time"
)

// The daemon's flags for a pool of so many ready sandboxes, for starting every one from a template on the spot, and for
// booting every one.
func poolOf(n int) []string { return []string{"--pool", strconv.Itoa(n)} }
func restoring() []string   { return []string{"--pool", "restore"} }
func booting() []string     { return []string{"--pool", "off"} }

// poolPatience bounds the making of a template and of what is kept ready.
const poolPatience = 2 * time.Minute

// awaitPool waits until the sizes of the daemon's that something was started in, or any one if nothing was, have their
// template, at least so many sandboxes ready, and all they want.
func awaitPool(ctx context.Context, socket string, least int) error {
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}}
	for began := time.Now(); time.Since(began) < poolPatience; time.Sleep(10 * time.Millisecond) {
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
				Template                bool
				Ready, Wanted, Filling  int
				Taken, Restored, Missed int
				Prepared                []struct{ Ready int }
			}
		}
		err = json.NewDecoder(answer.Body).Decode(&status)
		answer.Body.Close()
		if err != nil {
			return err
		}
		filled, missing := 0, 0
		for _, c := range status.Classes {
			prepared := len(c.Prepared) == 0 || c.Prepared[0].Ready > 0 || least == 0
			if c.Template && c.Ready >= max(least, c.Wanted) && c.Filling == 0 && prepared {
				filled++
			} else if c.Taken+c.Restored+c.Missed > 0 {
				missing++
			}
		}
		if filled > 0 && missing == 0 {
			return nil
		}
	}
	return errors.New("the pool does not fill")
}
