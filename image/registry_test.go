package image

import (
	"context"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/cradlevm/cradle/image/imagetest"
)

// noKeychain keeps the tests from the docker config of whoever runs them.
type noKeychain struct{}

func (noKeychain) Resolve(authn.Resource) (authn.Authenticator, error) { return authn.Anonymous, nil }

// liar is a registry whose replies a test can falsify.
type liar struct {
	host  string
	inner http.Handler
	mu    sync.Mutex
	gets  map[string]int // by path
	// lie may answer a request itself and return true.
	lie func(w http.ResponseWriter, r *http.Request, honest func() *httptest.ResponseRecorder) bool
}

func newLiar(t testing.TB) *liar {
	l := &liar{inner: registry.New(registry.Logger(log.New(io.Discard, "", 0))), gets: map[string]int{}}
	srv := httptest.NewServer(l)
	t.Cleanup(func() { srv.CloseClientConnections(); srv.Close() })
	l.host = strings.TrimPrefix(srv.URL, "http://")
	return l
}

func (l *liar) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	l.mu.Lock()
	lie := l.lie
	if r.Method == http.MethodGet {
		l.gets[r.URL.Path]++
	}
	l.mu.Unlock()
	honest := func() *httptest.ResponseRecorder {
		rec := httptest.NewRecorder()
		l.inner.ServeHTTP(rec, r)
		return rec
	}
	if lie != nil && r.Method == http.MethodGet && lie(w, r, honest) {
		return
	}
	l.inner.ServeHTTP(w, r)
}

// blobGets counts the downloads of blobs.
func (l *liar) blobGets() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for p, c := range l.gets {
		if strings.Contains(p, "/blobs/sha256:") {
			n += c
		}
	}
	return n
}

func (l *liar) push(t testing.TB, name string, what remote.Taggable) string {
	t.Helper()
	ref := l.host + "/" + name
	if err := imagetest.Push(context.Background(), ref, what); err != nil {
		t.Fatal(err)
	}
	return ref
}

// answer sends a body as the honest reply would, of the length it has.
func answer(w http.ResponseWriter, rec *httptest.ResponseRecorder, body []byte) {
	for k, v := range rec.Header() {
		w.Header()[k] = v
	}
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(rec.Code)
	w.Write(body)
}

func blobIs(r *http.Request, d fmt.Stringer) bool {
	return strings.HasSuffix(r.URL.Path, "/blobs/"+d.String())
}
