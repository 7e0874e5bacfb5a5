package dockerapi

import (
	"bufio"
	"cmp"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"path"
	"runtime"
	"runtime/debug"
	"time"

	"github.com/containerd/errdefs"
)

// Options of New.
type Options struct {
	// Version of the daemon, for the Server header; "dev" when empty.
	Version string
	// BuilderVersion is announced to clients: "1" the classic builder, "2" (the default) BuildKit.
	BuilderVersion string
	// Log gets a line for each failed request, and at debug level for every one. Nil is silence.
	Log *slog.Logger
	// Extra handlers live beside the Docker API, by ServeMux pattern ("/cradle/v1/"). They see the request as it
	// came and have no version prefix.
	Extra map[string]http.Handler
}

// server is the HTTP side of a Backend.
type server struct {
	b       Backend
	o       Options
	log     *slog.Logger
	mux     *http.ServeMux
	extra   *http.ServeMux
	isExtra bool
}

// New serves the Docker Engine API from b.
func New(b Backend, o Options) http.Handler {
	o.Version = cmp.Or(o.Version, "dev")
	o.BuilderVersion = cmp.Or(o.BuilderVersion, "2")
	s := &server{b: b, o: o, log: o.Log, extra: http.NewServeMux()}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.mux = newMux(s.routes())
	for pattern, h := range o.Extra {
		s.extra.Handle(pattern, h)
		s.isExtra = true
	}
	return s
}

// ServeHTTP finds the request's API version and its handler. Whatever happens, the answer is one that docker's
// clients can read.
func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	res := &response{ResponseWriter: w}
	began := time.Now()
	defer func() {
		s.log.Debug("request", "method", r.Method, "path", r.URL.Path, "status", res.status, "took", time.Since(began))
	}()
	defer func() {
		if p := recover(); p != nil {
			s.panicked(res, r, p)
		}
	}()

	if s.isExtra {
		if _, pattern := s.extra.Handler(r); pattern != "" {
			s.extra.ServeHTTP(res, r)
			return
		}
	}
	s.setHeaders(res.Header())
	version, rest, err := cutVersion(path.Clean("/" + r.URL.Path))
	if err != nil {
		writeError(res, err)
		return
	}
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		writeError(res, invalid("invalid query: "+err.Error()))
		return
	}

	// The mux sees the path without its version. It is clean and decoded already (names of images contain slashes,
	// which some clients escape), so the mux never redirects: a redirected POST loses its body.
	c := &call{w: res, version: version, query: query, log: s.log}
	c.r = r.WithContext(withCall(r.Context(), c))
	u := *r.URL
	u.Path, u.RawPath = rest, ""
	c.r.URL = &u
	s.mux.ServeHTTP(res, c.r)
}

// setHeaders sets what docker sends with every answer; clients read the OS from any of them.
func (s *server) setHeaders(h http.Header) {
	h.Set("Api-Version", MaxAPIVersion)
	h.Set("Docker-Experimental", "false")
	h.Set("Ostype", "linux")
	h.Set("Server", "cradle/"+s.o.Version+" ("+runtime.GOOS+")")
}

// panicked answers for a handler that panicked. The stack is for the log alone.
func (s *server) panicked(w *response, r *http.Request, p any) {
	if err, ok := p.(error); ok && errors.Is(err, http.ErrAbortHandler) {
		panic(p) // the way to cut an answer short: net/http closes the connection
	}
	s.log.Error("panic in request", "method", r.Method, "path", r.URL.Path, "panic", p, "stack", string(debug.Stack()))
	switch {
	case w.conn != nil:
		_ = w.conn.Close()
	case w.status == 0:
		writeError(w, errdefs.ErrInternal.WithMessage("internal error: see the daemon's log"))
	default:
		panic(http.ErrAbortHandler)
	}
}

// response remembers what became of the answer, which decides how an error can still be told.
type response struct {
	http.ResponseWriter
	status int      // 0: nothing sent
	conn   net.Conn // hijacked
}

func (w *response) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *response) Write(p []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	return w.ResponseWriter.Write(p)
}

// Flush sends what was written, headers included.
func (w *response) Flush() {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	_ = http.NewResponseController(w.ResponseWriter).Flush()
}

// Hijack takes the connection over from net/http.
func (w *response) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(w.ResponseWriter).Hijack()
	if err == nil {
		w.conn, w.status = conn, http.StatusSwitchingProtocols
	}
	return conn, rw, err
}
