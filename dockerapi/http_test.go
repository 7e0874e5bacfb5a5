package dockerapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/api/types/system"
	"github.com/moby/moby/client"
)

// do makes a request without a network.
func do(h http.Handler, method, target, contentType, body string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, target, strings.NewReader(body))
	if contentType != "" {
		r.Header.Set("Content-Type", contentType)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

func TestAnswers(t *testing.T) {
	const js = "application/json"
	big := `{"Image":"` + strings.Repeat("x", maxBody) + `"}`
	for _, test := range []struct {
		method, target, contentType, body string
		status                            int
		want                              string // in the body
	}{
		// Versions and paths.
		{"GET", "/v1.40/_ping", "", "", 200, "OK"},
		{"GET", "/v1.56/_ping", "", "", 200, "OK"},
		{"GET", "/v1.99/info", "", "", 400, "client version 1.99 is too new. Maximum supported API version is 1.56"},
		{"GET", "/v2/info", "", "", 400, "client version 2 is too new"},
		{"GET", "/v1.39/_ping", "", "", 400, "client version 1.39 is too old. Minimum supported API version is 1.40, please upgrade your client to a newer version"},
		{"GET", "/v1.4.5/info", "", "", 400, "client version 1.4.5 is not an API version"},
		{"GET", "/v1.99999999999999999999/info", "", "", 400, "is not an API version"},
		{"GET", "/v1.44", "", "", 404, "page not found"},
		{"GET", "/v1.44x/info", "", "", 404, "page not found"},
		{"GET", "/", "", "", 404, "page not found"},
		{"GET", "/nope", "", "", 404, `{"message":"page not found"}`},
		{"GET", "/images", "", "", 404, "page not found"},
		{"POST", "/info", "", "", 405, "method not allowed"},
		{"PATCH", "/v1.44/containers/x/json", "", "", 405, "method not allowed"},
		{"POST", "/images/a/b/json", "", "", 405, "method not allowed"},
		{"GET", "/v1.44//containers//json", "", "", 200, "[]"},
		{"GET", "/v1.44/containers/..%2Fjson", "", "", 404, "page not found"},
		{"GET", "/cradle/v1/x", "", "", 200, "extra /cradle/v1/x"},
		{"GET", "/info?%zz", "", "", 400, "invalid query"},

		// Names of images.
		{"GET", "/images/alpine/json", "", "", 200, `"RepoTags":["alpine"]`},
		{"GET", "/images/reg.io:5000/a/b:c/json", "", "", 404, "No such image: reg.io:5000/a/b:c"},
		{"GET", "/images/reg.io%3A5000%2Fa%2Fb/history", "", "", 404, "No such image: reg.io:5000/a/b"},
		{"DELETE", "/images/a/json", "", "", 404, "No such image: a/json"},
		{"GET", "/images/alpine/json?platform=linux/amd64", "", "", 200, "amd64"},
		{"GET", `/images/alpine/json?platform={"os":"linux","architecture":"arm64"}`, "", "", 404, "does not provide the specified platform (linux/arm64)"},
		{"GET", "/images/alpine/json?platform={", "", "", 400, "invalid platform"},
		{"GET", "/images/alpine/json?platform=a/b/c/d/e", "", "", 400, "invalid platform"},
		{"GET", "/v1.43/images/alpine/json", "", "", 200, `"VirtualSize":10`},
		{"GET", "/v1.52/images/alpine/json", "", "", 200, `"ContainerConfig":{`},

		// Bodies.
		{"POST", "/containers/create", js, "", 400, "config cannot be empty in order to create a container"},
		{"POST", "/containers/create", js, "{}", 400, "config cannot be empty in order to create a container"},
		{"POST", "/containers/create", js, `{"HostConfig":{}}`, 400, "config cannot be empty"},
		{"POST", "/containers/create", js, " ", 400, "invalid JSON: got EOF while reading request body"},
		{"POST", "/containers/create", js, "{", 400, "invalid JSON: unexpected EOF"},
		{"POST", "/containers/create", js, "[]", 400, "invalid JSON: json: cannot unmarshal array"},
		{"POST", "/containers/create", js, `{"Image":"a"} {}`, 400, "unexpected content after JSON"},
		{"POST", "/containers/create", js, big, 413, "request body too large"},
		{"POST", "/containers/create", "", `{"Image":"a"}`, 400, "malformed Content-Type header ()"},
		{"POST", "/containers/create", "text/plain", `{"Image":"a"}`, 400, "unsupported Content-Type header (text/plain): must be 'application/json'"},
		{"POST", "/containers/create", js + "; charset=utf-8", `{"Image":"alpine","Cmd":["a"]}`, 201, `"Warnings":[]`},
		{"POST", "/containers/create", js, `{"Image":"nope"}`, 404, "No such image: nope:latest"},
		{"POST", "/containers/create", js, `{"Image":"alpine","MacAddress":"02:00"}`, 501, "The field MacAddress of a container is not supported by cradle yet"},
		{"POST", "/containers/create", js, `{"Image":"alpine","HostConfig":{"KernelMemory":5}}`, 501, "HostConfig.KernelMemory"},
		{"POST", "/containers/create", js, `{"Image":"alpine","HostConfig":{"Mounts":[{"Odd":true}]}}`, 501, "HostConfig.Mounts.0.Odd"},
		{"POST", "/containers/create", js, `{"Image":"alpine","MacAddress":"","X":null,"HostConfig":{"KernelMemory":0,"Y":[0,0],"MEMORY":5}}`, 201, "Id"},
		{"POST", "/containers/create?platform=nonsense", js, `{"Image":"alpine"}`, 400, "invalid platform"},
		{"POST", "/containers/x/exec", js, `{}`, 400, "no exec command specified"},
		{"POST", "/exec/x/start", js, `{"ConsoleSize":[1,2]}`, 400, "console size is only supported when TTY is enabled"},
		{"POST", "/exec/x/start", js, `{}`, 404, "No such exec instance: x"},
		{"POST", "/containers/x/start", js, `{"Binds":["a"]}`, 400, "starting container with non-empty request body"},

		// Parameters.
		{"GET", "/containers/json?limit=x", "", "", 400, `invalid value for "limit"`},
		{"GET", "/containers/json?filters={", "", "", 400, "invalid filter"},
		{"GET", `/containers/json?filters={"odd":["a"]}`, "", "", 400, "invalid filter 'odd'"},
		{"GET", `/containers/json?filters={"label":5}`, "", "", 400, "invalid filter"},
		{"GET", "/events?since=never", "", "", 400, `invalid value for "since"`},
		{"GET", "/events?since=5&until=4", "", "", 400, "cannot be after"},
		{"GET", "/containers/x/logs", "", "", 400, "you must choose at least one stream"},
		{"GET", "/containers/x/logs?stdout=1&tail=few", "", "", 404, "No such container: x"}, // all of them, as docker has it
		{"POST", "/containers/x/stop?t=soon", "", "", 400, `invalid value for "t"`},
		{"POST", "/containers/x/resize?h=1", "", "", 400, "invalid resize width"},
		{"POST", "/containers/x/resize?h=-1&w=5", "", "", 400, "invalid resize height"},
		{"POST", "/containers/x/wait?condition=odd", "", "", 400, "invalid condition"},
		{"POST", "/containers/x/rename", "", "", 400, "new name cannot be empty"},
		{"POST", "/containers/x/start?checkpoint=c", "", "", 501, "Starting from a checkpoint (checkpoint) is not supported"},
		{"DELETE", "/containers/x?link=1", "", "", 501, "Removing a link"},
		{"GET", "/containers/x/stats?stream=1&one-shot=1", "", "", 400, "cannot have stream=true and one-shot=true"},
		{"GET", "/system/df?type=odd", "", "", 400, "unknown object type: odd"},
		{"POST", "/images/create", "", "", 400, "one of fromImage and fromSrc"},
		{"POST", "/images/create?fromImage=alpine", "", "", 501, "Pulling all tags of an image"},
		{"POST", "/images/create?fromImage=UP&tag=1", "", "", 400, "invalid reference format"},
		{"POST", "/images/create?fromSrc=http://x", "", "", 501, "Importing an image from a URL"},
		{"POST", "/images/alpine/tag?repo=a@sha256:" + strings.Repeat("0", 64), "", "", 400, "refusing to create a tag with a digest reference"},
		{"GET", "/images/get", "", "", 400, "names of images are required"},
		{"GET", "/images/get?names=nope", "", "", 404, "No such image: nope"},
		{"GET", "/containers/x/attach/ws", "", "", 400, "needs an upgrade request"},

		{"GET", "/containers/json?since=a&before=b", "", "", 200, "[]"},
		{"GET", "/images/json?identity=1", "", "", 501, "Listing the identity of images (identity)"},
		{"GET", "/v1.43/images/json", "", "", 200, `"VirtualSize":10`},
		{"DELETE", "/images/alpine?platforms=x", "", "", 501, "Removing one platform of an image"},
		{"POST", `/volumes/prune?filters={"odd":["a"]}`, "", "", 400, "invalid filter 'odd'"},

		// Files.
		{"HEAD", "/containers/x/archive", "", "", 400, "path: value cannot be empty"},
		{"GET", "/containers/x/archive", "", "", 400, "path: value cannot be empty"},
		{"PUT", "/containers/x/archive", "", "", 400, "path: value cannot be empty"},
		{"GET", "/containers/x/archive?path=/a", "", "", 404, "No such container: x"},
		{"HEAD", "/containers/x/archive?path=/a", "", "", 404, "No such container: x"},
		{"PUT", "/containers/x/archive?path=/a", "", "tar", 404, "No such container: x"},
		{"GET", "/containers/x/changes", "", "", 404, "No such container: x"},
		{"GET", "/containers/x/export", "", "", 404, "No such container: x"},
		{"POST", "/commit", "", "", 400, "container: value cannot be empty"},
		{"POST", "/commit?container=x", "", "", 404, "No such container: x"},
		{"POST", "/commit?container=x&repo=UP", "", "", 400, "invalid reference format"},
		{"POST", "/commit?container=x&repo=a&tag=sha256:" + strings.Repeat("0", 64), "", "", 400, "refusing to create a tag with a digest reference"},
		{"POST", "/commit?container=x", js, "{", 400, "invalid JSON"},
		{"POST", "/containers/x/update", js, "{}", 404, "No such container: x"},
		{"POST", "/containers/x/update", "text/plain", "{}", 400, "unsupported Content-Type"},
		{"POST", "/containers/x/update", js, `{"KernelMemory":5}`, 501, "Updating the field KernelMemory of a container"},

		// What cradle does not have.
		{"POST", "/build", "", "", 501, "Building an image is not supported by cradle yet"},
		{"POST", "/session", "", "", 501, "not supported"},
		{"GET", "/distribution/a/b/json", "", "", 501, "not supported"},
		{"POST", "/auth", js, "{}", 501, "Logging in through the daemon is not supported"},
		{"GET", "/swarm", "", "", 503, "This node is not a swarm manager. Use"},
		{"GET", "/services/x", "", "", 503, "not a swarm manager"},
		{"POST", "/swarm/leave", "", "", 503, "not part of a swarm"},
		{"DELETE", "/networks/none", "", "", 403, "none is a pre-defined network and cannot be removed"},
		{"GET", "/networks/none", "", "", 200, `"Containers":{}`},
		{"GET", `/networks?filters={"nonsense":["a"]}`, "", "", 400, "nonsense"},
		{"POST", "/networks/create", js, `{"Name":""}`, 400, "network name cannot be empty"},
		{"POST", "/networks/create", js, "{", 400, "invalid JSON"},
		{"POST", "/networks/a/connect", "text/plain", "{}", 400, "unsupported Content-Type"},
		{"DELETE", "/volumes/x", "", "", 404, "get x: no such volume"},
		{"DELETE", "/volumes/x?force=1", "", "", 204, ""},
		{"DELETE", "/plugins/a/b", "", "", 404, "not found"},
	} {
		s := New(newFake(), Options{Extra: map[string]http.Handler{"/cradle/v1/": http.HandlerFunc(
			func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, "extra "+r.URL.Path) })}})
		w := do(s, test.method, strings.ReplaceAll(test.target, `"`, "%22"), test.contentType, test.body)
		text := strings.ReplaceAll(w.Body.String(), `\"`, `"`)
		if w.Code != test.status || (!strings.Contains(w.Body.String(), test.want) && !strings.Contains(text, test.want)) {
			t.Errorf("%s %s %.50s: %d %.300s; want %d %s", test.method, test.target, test.body, w.Code, w.Body, test.status, test.want)
		}
		var message struct{ Message string }
		if w.Code >= 400 && (json.Unmarshal(w.Body.Bytes(), &message) != nil || message.Message == "") {
			t.Errorf("%s %s: not an error message: %s", test.method, test.target, w.Body)
		}
	}
}

func TestPing(t *testing.T) {
	s := New(newFake(), Options{Version: "9"})
	for _, method := range []string{"GET", "HEAD"} {
		w := do(s, method, "/_ping", "", "")
		for name, want := range map[string]string{
			"Api-Version": client.MaxAPIVersion, "Ostype": "linux", "Builder-Version": "2", "Docker-Experimental": "false",
			"Swarm": "inactive", "Cache-Control": "no-cache, no-store, must-revalidate", "Pragma": "no-cache",
			"Server": "cradle/9 (linux)", "Content-Type": "text/plain; charset=utf-8",
		} {
			if got := w.Header().Get(name); got != want {
				t.Errorf("%s: %s is %q, want %q", method, name, got, want)
			}
		}
		if body := w.Body.String(); (method == "GET") != (body == "OK") {
			t.Errorf("%s: body %q", method, body)
		}
	}
}

func TestAllowHeader(t *testing.T) {
	w := do(New(newFake(), Options{}), "PUT", "/containers/x/archive/", "", "")
	if w.Code != 400 {
		t.Errorf("PUT of an archive: %d", w.Code)
	}
	w = do(New(newFake(), Options{}), "POST", "/containers/x/archive", "", "")
	if got := w.Header().Get("Allow"); got != "GET, HEAD, PUT" {
		t.Errorf("Allow is %q", got)
	}
}

func TestTimes(t *testing.T) {
	for text, want := range map[string]time.Time{
		"0":                              time.Unix(0, 0),
		"1136073845":                     time.Unix(1136073845, 0),
		"1136073845.000000001":           time.Unix(1136073845, 1),
		"1136073845.5":                   time.Unix(1136073845, 5e8),
		"-3.5":                           time.Unix(-3, -5e8),
		"2006-01-02T15:04:05.123Z":       time.Date(2006, 1, 2, 15, 4, 5, 123e6, time.UTC),
		"2006-01-02T15:04:05+02:00":      time.Date(2006, 1, 2, 13, 4, 5, 0, time.UTC),
		"2006-01-02T15:04:05.000000001Z": time.Date(2006, 1, 2, 15, 4, 5, 1, time.UTC),
	} {
		if got, err := parseTime(text); err != nil || !got.Equal(want) {
			t.Errorf("%s is %v, %v; want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"x", "1.x", "1.-5", "1.0000000001", "1e9", "10m", " 1", "99999999999999999999"} {
		if got, err := parseTime(text); err == nil {
			t.Errorf("%q is %v", text, got)
		}
	}
}

func TestErrorStatus(t *testing.T) {
	for _, test := range []struct {
		err    error
		status int
		text   string
	}{
		{errors.New("odd"), 500, "odd"},
		{fmt.Errorf("no such thing: x: %w", errdefs.ErrNotFound), 404, "no such thing: x"},
		{fmt.Errorf("start: %w", errdefs.ErrNotFound.WithMessage("no such thing")), 404, "start: no such thing"},
		{errdefs.ErrInvalidArgument, 400, "invalid argument"},
		{errdefs.ErrOutOfRange, 400, "out of range"},
		{errdefs.ErrUnauthenticated, 401, ""},
		{errdefs.ErrPermissionDenied, 403, ""},
		{errdefs.ErrConflict, 409, ""},
		{errdefs.ErrAlreadyExists, 409, ""},
		{errdefs.ErrFailedPrecondition, 409, ""},
		{errdefs.ErrAborted, 409, ""},
		{errdefs.ErrNotImplemented, 501, ""},
		{errdefs.ErrUnavailable, 503, ""},
		{errdefs.ErrResourceExhausted, 503, ""},
		{errdefs.ErrInternal, 500, ""},
		{context.DeadlineExceeded, 500, ""},
		{fmt.Errorf("start: %w", ErrNotModified), 304, "start"},
		{&http.MaxBytesError{Limit: 1}, 413, ""},
	} {
		if status, _ := errorStatus(test.err); status != test.status {
			t.Errorf("%v: %d, want %d", test.err, status, test.status)
		}
		if test.text != "" && ErrorText(test.err) != test.text {
			t.Errorf("%v reads %q, want %q", test.err, ErrorText(test.err), test.text)
		}
	}
}

// bad is a Backend whose every interesting method goes wrong.
type bad struct {
	*fake
	info func() (system.Info, error)
}

func (b bad) Info(context.Context) (system.Info, error) { return b.info() }

func (b bad) ImageSave(_ context.Context, _ []string, w io.Writer) error {
	_, _ = w.Write(bytes.Repeat([]byte("x"), 1<<20))
	return errors.New("disk is gone")
}

func (b bad) ContainerAttach(context.Context, string, AttachOptions) (func(Streams) error, bool, error) {
	return func(s Streams) error {
		_, _ = io.WriteString(s.Stdout, "some")
		return errors.New("agent is gone")
	}, false, nil
}

func (b bad) ContainerLogs(context.Context, string, LogsOptions) (func(stdout, stderr io.Writer) error, bool, error) {
	return func(stdout, stderr io.Writer) error {
		_, _ = io.WriteString(stdout, "some")
		return errors.New("file is gone")
	}, false, nil
}

func (b bad) ContainerWait(context.Context, string, container.WaitCondition) (<-chan WaitResult, error) {
	c := make(chan WaitResult, 1)
	c <- WaitResult{StatusCode: 1, Err: errors.New("lost it")}
	return c, nil
}

func TestPanic(t *testing.T) {
	var log bytes.Buffer
	s := New(bad{info: func() (system.Info, error) { panic("secret") }}, Options{Log: slog.New(slog.NewTextHandler(&log, nil))})
	w := do(s, "GET", "/info", "", "")
	if w.Code != 500 || !strings.Contains(w.Body.String(), "internal error") || strings.Contains(w.Body.String(), "secret") {
		t.Errorf("answer %d %s", w.Code, w.Body)
	}
	if !strings.Contains(log.String(), "secret") || !strings.Contains(log.String(), "path=/info") || !strings.Contains(log.String(), "stack=") {
		t.Errorf("log %s", log.String())
	}
}

// TestHalfAnswers fails after the answer has begun.
func TestHalfAnswers(t *testing.T) {
	socket := serve(t, bad{fake: newFake(), info: func() (system.Info, error) { return system.Info{}, errors.New("no info") }})
	c := dialRaw(t, "unix", socket)
	c.send("GET /images/alpine/get HTTP/1.1\r\nHost: d\r\n\r\n")
	if _, err := io.Copy(io.Discard, c.answer(200).Body); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a save cut short ended with %v", err)
	}
	c = dialRaw(t, "unix", socket)
	c.send(attachAll + upgrade)
	c.answer(101)
	if out, errs := c.rest(); out != "some" || errs != "agent is gone\r\n" {
		t.Errorf("attach: %q, %q", out, errs)
	}
	c = dialRaw(t, "unix", socket)
	c.send("GET /containers/x/logs?stdout=1&follow=1 HTTP/1.1\r\nHost: d\r\n\r\n")
	if body, err := io.ReadAll(c.answer(200).Body); err != nil || !strings.Contains(string(body), "Error grabbing logs: file is gone\n") {
		t.Errorf("logs: %q, %v", body, err)
	}
	c.send("POST /containers/x/wait HTTP/1.1\r\nHost: d\r\n\r\n")
	if body, _ := io.ReadAll(c.answer(200).Body); string(body) != `{"Error":{"Message":"lost it"},"StatusCode":1}`+"\n" {
		t.Errorf("wait: %q", body)
	}
	c.send("GET /info HTTP/1.1\r\nHost: d\r\n\r\n")
	c.answer(500)
}

// guarded is a Backend that knows one user.
type guarded struct{ *fake }

func (guarded) Auth(_ context.Context, auth registry.AuthConfig) (registry.AuthResponse, error) {
	if auth.Username != "u" {
		return registry.AuthResponse{}, errdefs.ErrUnauthenticated.WithMessage("who are you?")
	}
	return registry.AuthResponse{Status: "Login Succeeded"}, nil
}

func TestAuth(t *testing.T) {
	s := New(guarded{newFake()}, Options{})
	if w := do(s, "POST", "/auth", "application/json", `{"username":"u"}`); w.Code != 200 || !strings.Contains(w.Body.String(), "Login Succeeded") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if w := do(s, "POST", "/auth", "application/json", `{"username":"v"}`); w.Code != 401 || !strings.Contains(w.Body.String(), "who are you?") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

func TestProgressErrors(t *testing.T) {
	s := New(newFake(), Options{})
	for version, want := range map[string]string{
		"1.44": `{"errorDetail":{"message":"layer broken:1 is broken"},"error":"layer broken:1 is broken"}`,
		"1.52": `{"errorDetail":{"message":"layer broken:1 is broken"}}`,
	} {
		w := do(s, "POST", "/v"+version+"/images/create?fromImage=broken&tag=1", "", "")
		lines := strings.Split(strings.TrimSpace(w.Body.String()), "\n")
		if w.Code != 200 || lines[len(lines)-1] != want {
			t.Errorf("%s: %d %s", version, w.Code, w.Body)
		}
	}
	if w := do(s, "POST", "/images/create?fromImage=absent&tag=1", "", ""); w.Code != 404 {
		t.Errorf("absent: %d %s", w.Code, w.Body)
	}
}

func TestEventsTypes(t *testing.T) {
	s := New(newFake(), Options{})
	for _, test := range []struct{ version, accept, contentType, body string }{
		{"1.52", "", "application/json", `{"status":"start","id":"abc","from":"alpine","Type":"container",`},
		{"1.51", "", "application/json", `{"status":"start","id":"abc","from":"alpine","Type":"container",`},
		{"1.52", "application/jsonl, application/x-ndjson;q=0.9", "application/jsonl", `{"status"`},
		{"1.52", "text/html, application/json-seq;q=0.5", "application/json-seq", "\x1e{"},
	} {
		r := httptest.NewRequest("GET", "/v"+test.version+"/events?until=9", nil)
		r.Header.Set("Accept", test.accept)
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r)
		if w.Header().Get("Content-Type") != test.contentType || !strings.HasPrefix(w.Body.String(), test.body) {
			t.Errorf("%+v: %v %s", test, w.Header(), w.Body)
		}
	}
}

func TestPullAuth(t *testing.T) {
	f := newFake()
	s := New(f, Options{})
	for header, want := range map[string]string{
		"":                             "pull a:1 <nil> <nil>",
		"e30=":                         "pull a:1 <nil> <nil>", // {}
		"eyJ1c2VybmFtZSI6InUifQ==":     "pull a:1 <nil> &{Username:u",
		"eyJ1c2VybmFtZSI6Ij8_Pz8ifQ==": "pull a:1 <nil> &{Username:????", // in the URL's alphabet
	} {
		r := httptest.NewRequest("POST", "/images/create?fromImage=docker.io/library/a&tag=1", nil)
		r.Header.Set("X-Registry-Auth", header)
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r)
		calls := f.called()
		if w.Code != 200 || !strings.HasPrefix(calls[len(calls)-1], want) {
			t.Errorf("%q: %d %q", header, w.Code, calls[len(calls)-1])
		}
	}
	r := httptest.NewRequest("POST", "/images/create?fromImage=a&tag=1", nil)
	r.Header.Set("X-Registry-Auth", "!")
	w := httptest.NewRecorder()
	if s.ServeHTTP(w, r); w.Code != 400 {
		t.Errorf("garbage: %d %s", w.Code, w.Body)
	}
}

func TestFilterForms(t *testing.T) {
	for text, want := range map[string]string{
		"":                                "map[]",
		"{}":                              "map[]",
		"null":                            "map[]",
		`{"a":{"x":true,"y":false}}`:      "map[a:map[x:true y:true]]",
		`{"a":["x","y"]}`:                 "map[a:map[x:true y:true]]",
		`{"a":["x"],"b":{"y":true}}`:      "map[a:map[x:true] b:map[y:true]]",
		`{"label":["k=v=w"],"label!":[]}`: "map[label:map[k=v=w:true] label!:map[]]",
	} {
		if f, err := parseFilters(text); err != nil || fmt.Sprint(f) != want {
			t.Errorf("%s is %v, %v; want %s", text, f, err, want)
		}
	}
	for _, text := range []string{"x", "[]", `{"a":"x"}`, `{"a":[1]}`, `{"a":{"b":1}}`, `{} {}`} {
		if f, err := parseFilters(text); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s is %v, %v", text, f, err)
		}
	}
}

func TestLegacyShapes(t *testing.T) {
	f := newFake()
	s := New(f, Options{})
	do(s, "POST", "/containers/create?name=box", "application/json", `{"Image":"alpine","Cmd":["echo"]}`)
	w := do(s, "GET", "/v1.51/containers/box/json", "", "")
	if !strings.Contains(w.Body.String(), `"IPAddress":"10.1.2.3","IPPrefixLen":24`) || !strings.Contains(w.Body.String(), `"Networks":{`) {
		t.Errorf("old inspect: %s", w.Body)
	}
	w = do(s, "GET", "/v1.52/containers/box/json", "", "")
	if strings.Contains(w.Body.String(), "SecondaryIPAddresses") {
		t.Errorf("new inspect: %s", w.Body)
	}
	w = do(s, "GET", "/v1.51/system/df?type=image", "", "")
	if got := w.Body.String(); !strings.Contains(got, `"LayersSize":10,"Images":[{`) || !strings.Contains(got, `"Containers":null`) {
		t.Errorf("old df: %s", got)
	}
	w = do(s, "GET", "/v1.52/system/df?type=image", "", "")
	if got := strings.TrimSpace(w.Body.String()); got != `{"ImageUsage":{"TotalCount":1,"TotalSize":10}}` {
		t.Errorf("new df: %s", got)
	}
	w = do(s, "GET", "/v1.52/system/df?type=image&verbose=1", "", "")
	if !strings.Contains(w.Body.String(), `"Items":[{`) {
		t.Errorf("new verbose df: %s", w.Body)
	}
}

// TestWatchHangupStops ends a watch whose connection stays.
func TestWatchHangupStops(t *testing.T) {
	a, b := net.Pipe() // has no descriptor: nothing to watch
	watchHangup(a, func() { t.Error("hung up") })()
	_ = b.Close()

	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	stop := watchHangup(c, func() { t.Error("hung up") })
	stop()
	stop()
	_ = c.Close()
	time.Sleep(10 * time.Millisecond)
}

// TestRoutesAreUnique guards the table: of two equal rows one would never be found.
func TestRoutesAreUnique(t *testing.T) {
	s := &server{b: newFake()}
	var seen []string
	for _, r := range s.routes() {
		key := r.method + " " + r.path + r.suffix
		if slices.Contains(seen, key) {
			t.Errorf("%s is there twice", key)
		}
		seen = append(seen, key)
	}
}
