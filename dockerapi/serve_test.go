package dockerapi

import (
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// serve serves a backend on a unix socket.
func serve(t *testing.T, b Backend) (socket string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "d.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(New(b, Options{
		Version: "test",
		Log:     slog.New(slog.NewTextHandler(testLog{t}, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Extra: map[string]http.Handler{"/cradle/v1/": http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = w.Write([]byte("extra " + r.URL.Path))
		})},
	}))
	_ = s.Listener.Close()
	s.Listener = l
	s.Start()
	t.Cleanup(func() {
		s.CloseClientConnections()
		s.Close()
	})
	return socket
}

// testLog sends the server's log to the test's, which shows it on failure.
type testLog struct{ t *testing.T }

func (l testLog) Write(p []byte) (int, error) {
	if l.t.Context().Err() == nil {
		l.t.Log(strings.TrimSpace(string(p)))
	}
	return len(p), nil
}

// eventually waits for a call to the fake.
func (f *fake) eventually(t *testing.T, call string) {
	t.Helper()
	f.await(t, call, func(c string) bool { return c == call })
}

// eventuallyLike waits for a call that begins like this.
func (f *fake) eventuallyLike(t *testing.T, prefix string) {
	t.Helper()
	f.await(t, prefix, func(c string) bool { return strings.HasPrefix(c, prefix) })
}

func (f *fake) await(t *testing.T, what string, is func(string) bool) {
	t.Helper()
	for range 1000 {
		if slices.ContainsFunc(f.called(), is) {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatalf("%q was not called; calls: %q", what, f.called())
}

func emptyNetworking() *network.NetworkingConfig { return &network.NetworkingConfig{} }

func execRequest(cmd ...string) container.ExecCreateRequest {
	return container.ExecCreateRequest{Cmd: cmd, AttachStdin: true, AttachStdout: true, AttachStderr: true}
}
