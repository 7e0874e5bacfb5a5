package dockerapi

import (
	"context"
	"net/http"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
)

// handler answers one request. An error it returns before anything was sent becomes the answer.
type handler func(c *call) error

// route is one row of the API's table. A name that may contain slashes is {name...}, always last: what follows it
// in docker's path is the row's suffix.
type route struct {
	method, path, suffix string
	handle               handler
}

// routes is the API.
func (s *server) routes() []route {
	return slices.Concat(
		s.systemRoutes(), s.containerRoutes(), s.fileRoutes(), s.imageRoutes(), s.networkRoutes(), s.volumeRoutes(), s.absentRoutes(), s.swarmRoutes())
}

// pathRoutes are the rows that share a pattern of the mux.
type pathRoutes []route

// newMux makes a mux of the table. Methods are chosen here and not by the mux so that a wrong method is answered
// in JSON, and so that "GET /images/{name...}" may stand beside "POST /images/load".
func newMux(table []route) *http.ServeMux {
	mux := http.NewServeMux()
	byPath := map[string]pathRoutes{}
	for _, r := range table {
		byPath[r.path] = append(byPath[r.path], r)
	}
	for path, routes := range byPath {
		mux.Handle(path, routes)
		if root, ok := strings.CutSuffix(path, "/{name...}"); ok && byPath[root] == nil {
			mux.Handle(root, pathRoutes{}) // else the mux redirects it to root/
		}
	}
	mux.Handle("/", pathRoutes{})
	return mux
}

// ServeHTTP picks the row of the request's method with the longest suffix.
func (p pathRoutes) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c := callOf(r.Context())
	c.r = r // the mux has put the path's wildcards into it
	var found *route
	var allowed []string
	for i, row := range p {
		name, ok := strings.CutSuffix(r.PathValue("name"), row.suffix)
		if !ok || (name == "" && strings.HasSuffix(row.path, "{name...}")) {
			continue
		}
		allowed = append(allowed, row.method)
		if row.method == r.Method && (found == nil || len(row.suffix) > len(found.suffix)) {
			found, c.name = &p[i], name
		}
	}
	switch {
	case found != nil:
		c.serve(found.handle)
	case allowed != nil:
		slices.Sort(allowed)
		w.Header().Set("Allow", strings.Join(slices.Compact(allowed), ", "))
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusMethodNotAllowed)
		_, _ = w.Write([]byte(`{"message":"method not allowed"}` + "\n"))
	default:
		writeError(w, pageNotFound())
	}
}

// serve runs a handler and answers for its error.
func (c *call) serve(handle handler) {
	err := handle(c)
	if err == nil {
		return
	}
	status, _ := errorStatus(err)
	if clientGone(c.r.Context(), err) {
		c.log.Debug("client gone", "method", c.r.Method, "path", c.r.URL.Path)
	} else if status >= http.StatusInternalServerError && !errdefs.IsNotImplemented(err) {
		c.log.Error("request failed", "method", c.r.Method, "path", c.r.URL.Path, "error", err)
	}
	switch {
	case c.w.conn != nil: // the hijacker closes it
	case c.w.status == 0:
		writeError(c.w, err)
	default:
		// Half an answer is out. Closing the connection is the one way left to say that it is not whole.
		panic(http.ErrAbortHandler)
	}
}

type callKey struct{}

func withCall(ctx context.Context, c *call) context.Context {
	return context.WithValue(ctx, callKey{}, c)
}

func callOf(ctx context.Context) *call { return ctx.Value(callKey{}).(*call) }
