package image

import (
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/registry"

	"github.com/cradlevm/cradle/image/imagetest"
)

// locked is a registry that wants to know who asks.
func locked(t *testing.T) (host string) {
	inner := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if name, password, _ := r.BasicAuth(); name != "somebody" || password != "right" {
			w.Header().Set("WWW-Authenticate", `Basic realm="here"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		inner.ServeHTTP(w, r)
	}))
	t.Cleanup(func() { srv.CloseClientConnections(); srv.Close() })
	return strings.TrimPrefix(srv.URL, "http://")
}

// What is pushed and pulled into another store is the same image; pushed again, no layer goes twice.
func TestPush(t *testing.T) {
	host := imagetest.ServeRegistry(t)
	from, to := openStore(t, Options{}), openStore(t, Options{})
	img := testImage(t, "one", "two")
	ref := host + "/team/app:1.0"
	if _, err := load(from, dockerArchive(t, ref, img)); err != nil {
		t.Fatal(err)
	}
	for i, status := range []string{"Pushed", "Layer already exists"} {
		var seen statuses
		manifest, size, err := from.Push(t.Context(), ref, PullOptions{Progress: seen.add})
		if err != nil || manifest.Validate() != nil || size <= 0 {
			t.Fatalf("push %d: %v %d %v", i, manifest, size, err)
		}
		if seen.count(status) != 2 || seen.count("Preparing") != 2 {
			t.Errorf("push %d: %q %d times", i, status, seen.count(status))
		}
	}
	got, err := to.Pull(t.Context(), ref, PullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if got.ID != idOf(t, img) {
		t.Errorf("pushed %s, pulled %s", idOf(t, img), got.ID)
	}
}

func TestPushRefused(t *testing.T) {
	host := locked(t)
	s := openStore(t, Options{Keychain: noKeychain{}})
	ref := host + "/app:1"
	if _, err := load(s, dockerArchive(t, ref, testImage(t, "one"))); err != nil {
		t.Fatal(err)
	}
	right := PullOptions{Username: "somebody", Password: "right"}
	if _, _, err := s.Push(t.Context(), ref, right); err != nil {
		t.Error(err)
	}
	for name, c := range map[string]struct {
		ref  string
		o    PullOptions
		want error
	}{
		"anonymous": {ref: ref, want: ErrDenied},
		"wrong":     {ref: ref, o: PullOptions{Username: "somebody", Password: "wrong"}, want: ErrDenied},
		"no image":  {ref: host + "/other:1", o: right, want: ErrNotFound},
		"no name":   {ref: "Not_Valid", want: ErrBadName},
		"digest":    {ref: host + "/app@sha256:" + strings.Repeat("0", 64), want: ErrBadName},
	} {
		if _, _, err := s.Push(t.Context(), c.ref, c.o); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, _, err := s.Push(t.Context(), "127.0.0.1:1/app:1", right); err == nil {
		t.Error("pushed to nobody")
	}
}

func TestLogin(t *testing.T) {
	host := locked(t)
	s := openStore(t, Options{Keychain: noKeychain{}})
	if err := s.Login(t.Context(), host, PullOptions{Username: "somebody", Password: "right"}); err != nil {
		t.Error(err)
	}
	for _, password := range []string{"wrong", ""} {
		err := s.Login(t.Context(), "https://"+host+"/v1/", PullOptions{Username: "somebody", Password: password})
		if !errors.Is(err, ErrDenied) || !strings.Contains(err.Error(), "401 Unauthorized") {
			t.Errorf("password %q: %v", password, err)
		}
	}
	if err := s.Login(t.Context(), "127.0.0.1:1", PullOptions{}); err == nil {
		t.Error("nobody took the credentials")
	}
	if err := s.Login(t.Context(), "not a host", PullOptions{}); !errors.Is(err, ErrBadName) {
		t.Error(err)
	}
}
