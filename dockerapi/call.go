package dockerapi

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// maxBody bounds a JSON request. Archives are streamed and have no bound here.
const maxBody = 8 << 20

// call is one request as the handlers see it.
type call struct {
	w       *response
	r       *http.Request
	version apiVersion
	query   url.Values
	name    string // the path's {name...}, without its suffix
	log     *slog.Logger
}

// id is the path's {id}.
func (c *call) id() string { return c.r.PathValue("id") }

// flag reads a boolean the way docker does: everything but these words is true.
func (c *call) flag(key string) bool {
	switch strings.ToLower(strings.TrimSpace(c.query.Get(key))) {
	case "", "0", "no", "false", "none":
		return false
	}
	return true
}

// flagOr is flag with a default for an absent parameter.
func (c *call) flagOr(key string, absent bool) bool {
	if !c.query.Has(key) {
		return absent
	}
	return c.flag(key)
}

// number reads an optional integer: nil when absent.
func (c *call) number(key string) (*int, error) {
	text := c.query.Get(key)
	if text == "" {
		return nil, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		return nil, invalid(fmt.Sprintf("invalid value for %q: %q is not a number", key, text))
	}
	return &n, nil
}

// size reads the required height and width of a terminal.
func (c *call) size() (height, width uint, err error) {
	h, err1 := strconv.ParseUint(c.query.Get("h"), 10, 16)
	w, err2 := strconv.ParseUint(c.query.Get("w"), 10, 16)
	switch {
	case err1 != nil:
		return 0, 0, invalid(fmt.Sprintf("invalid resize height %q", c.query.Get("h")))
	case err2 != nil:
		return 0, 0, invalid(fmt.Sprintf("invalid resize width %q", c.query.Get("w")))
	}
	return uint(h), uint(w), nil
}

// time reads a moment: unix seconds with an optional fraction, or RFC 3339. Absent is the zero time.
func (c *call) time(key string) (time.Time, error) {
	text := c.query.Get(key)
	if text == "" {
		return time.Time{}, nil
	}
	t, err := parseTime(text)
	if err != nil {
		return t, invalid(fmt.Sprintf("invalid value for %q: %q is neither unix seconds nor RFC 3339", key, text))
	}
	return t, nil
}

func parseTime(text string) (time.Time, error) {
	secs, frac, _ := strings.Cut(text, ".")
	s, err := strconv.ParseInt(secs, 10, 64)
	if err != nil {
		return time.Parse(time.RFC3339Nano, text)
	}
	if frac == "" {
		return time.Unix(s, 0), nil
	}
	if len(frac) > 9 || strings.Trim(frac, "0123456789") != "" {
		return time.Time{}, errors.New("bad fraction")
	}
	nanos, err := strconv.ParseInt(frac+strings.Repeat("0", 9-len(frac)), 10, 64)
	if strings.HasPrefix(secs, "-") {
		nanos = -nanos
	}
	return time.Unix(s, nanos), err
}

// platform reads the platform that a request names; nil when it names none.
func (c *call) platform() (*ocispec.Platform, error) { return ParsePlatform(c.query.Get("platform")) }

// ParsePlatform reads a platform in either of the API's forms: "linux/arm64/v8" or an OCI platform in JSON; nil for "".
// Errors: ErrInvalidArgument.
func ParsePlatform(text string) (*ocispec.Platform, error) {
	if text == "" {
		return nil, nil
	}
	if strings.HasPrefix(text, "{") {
		var p ocispec.Platform
		if err := json.Unmarshal([]byte(text), &p); err != nil || p.OS == "" || p.Architecture == "" {
			return nil, invalid(fmt.Sprintf("invalid platform: %s", text))
		}
		p = platforms.Normalize(p)
		return &p, nil
	}
	p, err := platforms.Parse(text)
	if err != nil {
		return nil, invalid(fmt.Sprintf("invalid platform: %q is not of the form os/architecture[/variant]", text))
	}
	return &p, nil
}

// refuse fails by name if the client asks for any of the query's parameters.
func (c *call) refuse(feature string, keys ...string) error {
	for _, key := range keys {
		if c.flag(key) {
			return unsupported(feature + " (" + key + ")")
		}
	}
	return nil
}

// wantsJSON checks the content type like docker: a body must be said to be JSON.
func (c *call) wantsJSON() error {
	ct := c.r.Header.Get("Content-Type")
	if ct == "" && c.r.ContentLength == 0 {
		return nil
	}
	kind, _, err := mime.ParseMediaType(ct)
	if err != nil {
		return invalid(fmt.Sprintf("malformed Content-Type header (%s): %v", ct, err))
	}
	if kind != "application/json" {
		return invalid(fmt.Sprintf("unsupported Content-Type header (%s): must be 'application/json'", ct))
	}
	return nil
}

// body reads the whole JSON body; empty leaves v as it is. It returns the text, for a second look.
func (c *call) body(v any) ([]byte, error) {
	if err := c.wantsJSON(); err != nil {
		return nil, err
	}
	text, err := io.ReadAll(http.MaxBytesReader(c.w, c.r.Body, maxBody))
	if err != nil {
		return nil, fmt.Errorf("read request body: %w", err)
	}
	if c.r.ContentLength == 0 {
		return nil, nil
	}
	return text, decodeJSON(text, v)
}

// decodeJSON decodes exactly one JSON document, with docker's words for what may be wrong.
func decodeJSON(text []byte, v any) error {
	dec := json.NewDecoder(bytes.NewReader(text))
	switch err := dec.Decode(v); {
	case errors.Is(err, io.EOF):
		return invalid("invalid JSON: got EOF while reading request body")
	case err != nil:
		return invalid("invalid JSON: " + err.Error())
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return invalid("unexpected content after JSON")
	}
	return nil
}

// json answers with one JSON document.
func (c *call) json(status int, v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode answer: %w", err)
	}
	c.w.Header().Set("Content-Type", "application/json")
	c.w.WriteHeader(status)
	_, _ = c.w.Write(append(text, '\n')) // a client that has gone needs no answer
	return nil
}

// list answers with a JSON array, which is never null.
func list[T any](c *call, items []T) error {
	if items == nil {
		items = []T{}
	}
	return c.json(http.StatusOK, items)
}

// empty answers with a status alone.
func (c *call) empty(status int) error {
	c.w.WriteHeader(status)
	return nil
}
