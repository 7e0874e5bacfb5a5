package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"

	"github.com/containerd/errdefs/pkg/errhttp"
	"github.com/moby/moby/api/types/common"
)

// call makes a request to the part of the daemon's API that docker has no word for, under /cradle/v1/. An
// answer that is an error becomes one, in the words and with the class docker's client would give it.
func (d *daemonDialer) call(ctx context.Context, method, path string, query url.Values) (*http.Response, error) {
	return d.callWith(ctx, method, path, query, nil)
}

// callWith is call with a body, which is JSON.
func (d *daemonDialer) callWith(ctx context.Context, method, path string, query url.Values, body io.Reader) (*http.Response, error) {
	u := url.URL{Scheme: "http", Host: "cradle", Path: "/cradle/v1/" + path, RawQuery: query.Encode()}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), body)
	if err != nil {
		return nil, err
	}
	req.Header.Set("User-Agent", userAgent())
	c := http.Client{Transport: &http.Transport{DialContext: d.dial, DisableCompression: true, DisableKeepAlives: true}}
	resp, err := c.Do(req)
	if err != nil {
		return nil, fmt.Errorf("cannot talk to the cradle daemon at %s: %w", d.host, err)
	}
	if resp.StatusCode < 400 {
		return resp, nil
	}
	defer resp.Body.Close()
	var said common.ErrorResponse
	answer, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil || json.Unmarshal(answer, &said) != nil || said.Message == "" {
		said.Message = resp.Status
	}
	return nil, daemonError{message: said.Message, class: errhttp.ToNative(resp.StatusCode)}
}

// daemonError is what the daemon answered; errors.Is finds its errdefs class.
type daemonError struct {
	message string
	class   error
}

func (e daemonError) Error() string { return "Error response from daemon: " + e.message }

func (e daemonError) Is(target error) bool { return e.class != nil && errors.Is(e.class, target) }
