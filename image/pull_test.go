package image

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cradlevm/cradle/image/imagetest"
)

func TestPull(t *testing.T) {
	host := imagetest.ServeRegistry(t)
	s := openStore(t, Options{})
	img := testImage(t, "one", "two", "three", "four")
	ref := host + "/team/app:1.0"
	if err := imagetest.Push(t.Context(), ref, img); err != nil {
		t.Fatal(err)
	}
	var seen statuses
	got, err := s.Pull(t.Context(), ref, PullOptions{Progress: seen.add})
	if err != nil {
		t.Fatal(err)
	}
	manifest := must(img.Digest())
	if got.ID != idOf(t, img) || !slices.Equal(got.RepoTags, []string{ref}) ||
		!slices.Equal(got.RepoDigests, []string{host + "/team/app@" + manifest.String()}) {
		t.Errorf("got %+v", got)
	}
	if got.Descriptor.Digest.String() != manifest.String() || got.Config.Config.Labels["a"] != "b" || len(got.Config.History) != 4 {
		t.Errorf("got %+v", got)
	}
	var size int64
	for i, name := range []string{"one", "two", "three", "four"} {
		if !bytes.Equal(layerTar(t, s, got.Layers[i]), testTar(name)) {
			t.Errorf("layer %d differs", i)
		}
		size += got.Layers[i].Size
	}
	if got.Size != size {
		t.Errorf("size %d, want %d", got.Size, size)
	}
	for _, st := range []string{"Pulling fs layer", "Download complete", "Pull complete"} {
		if seen.count(st) != 4 {
			t.Errorf("%d times %q: %v", seen.count(st), st, seen.list)
		}
	}
	if seen.count("Status: Downloaded newer image for "+ref) != 1 {
		t.Error("no closing line")
	}
	seen = statuses{}
	again, err := s.Pull(t.Context(), host+"/team/app@"+manifest.String(), PullOptions{Progress: seen.add})
	if err != nil || again.ID != got.ID || seen.count("Already exists") != 4 || seen.count("Pull complete") != 0 {
		t.Errorf("again: %v %v", err, seen.list)
	}
}

func TestPullForms(t *testing.T) {
	s := openStore(t, Options{})
	host := imagetest.ServeRegistry(t)
	tarBytes := testTar("forms")
	enc := must(zstd.NewWriter(nil))
	for name, layer := range map[string]v1.Layer{
		"plain": static.NewLayer(tarBytes, types.OCIUncompressedLayer),
		"gzip":  static.NewLayer(imagetest.Gzip(tarBytes), types.OCILayer),
		"zstd":  static.NewLayer(enc.EncodeAll(tarBytes, nil), types.OCILayerZStd),
	} {
		img := must(mutate.Append(empty.Image, mutate.Addendum{Layer: layer}))
		cf := must(img.ConfigFile()).DeepCopy()
		h, _, _ := v1.SHA256(bytes.NewReader(tarBytes))
		cf.RootFS.DiffIDs = []v1.Hash{h}
		cf.OS, cf.Architecture, cf.Author = "linux", "amd64", name
		img = must(mutate.ConfigFile(img, cf))
		if err := imagetest.Push(t.Context(), host+"/forms:"+name, img); err != nil {
			t.Fatal(err)
		}
		got, err := s.Pull(t.Context(), host+"/forms:"+name, PullOptions{})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if !bytes.Equal(layerTar(t, s, got.Layers[0]), tarBytes) {
			t.Errorf("%s: layer differs", name)
		}
		if _, _, err := s.Remove(got.ID, false); err != nil {
			t.Error(err)
		}
	}
}

func TestPullPlatform(t *testing.T) {
	s := openStore(t, Options{})
	host := imagetest.ServeRegistry(t)
	ids := map[string]string{}
	idx := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for _, p := range []v1.Platform{
		{OS: "linux", Architecture: "arm", Variant: "v6"}, {OS: "linux", Architecture: "arm", Variant: "v7"},
		{OS: "linux", Architecture: "386"}, {OS: "linux", Architecture: "arm64", Variant: "v8"},
		{OS: "windows", Architecture: "amd64"},
	} {
		img := must(imagetest.PlatformImage(p, v1.Config{}, testTar("p")))
		ids[p.String()] = idOf(t, img)
		idx = mutate.AppendManifests(idx, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &p}})
	}
	attestation := testImage(t, "attest")
	idx = mutate.AppendManifests(idx, mutate.IndexAddendum{Add: attestation, Descriptor: v1.Descriptor{
		Platform: &v1.Platform{OS: "unknown", Architecture: "unknown"}, Annotations: map[string]string{"vnd.docker.reference.type": "attestation-manifest"},
	}})
	ref := host + "/multi:1"
	if err := imagetest.Push(t.Context(), ref, idx); err != nil {
		t.Fatal(err)
	}
	for want, ask := range map[string]ocispec.Platform{
		"linux/arm/v7":   {OS: "linux", Architecture: "arm", Variant: "v7"},
		"linux/arm/v6":   {OS: "linux", Architecture: "arm", Variant: "v6"},
		"linux/arm64/v8": {OS: "linux", Architecture: "aarch64"},
	} {
		got, err := s.Pull(t.Context(), ref, PullOptions{Platform: &ask})
		if err != nil || got.ID != ids[want] {
			t.Errorf("%s: %v %v", want, got.ID, err)
		}
		top := must(idx.Digest())
		if err == nil && !slices.Equal(got.RepoDigests, []string{host + "/multi@" + top.String()}) {
			t.Errorf("digests %v", got.RepoDigests)
		}
	}
	_, err := s.Pull(t.Context(), ref, PullOptions{Platform: &ocispec.Platform{OS: "linux", Architecture: "amd64"}})
	if !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "no matching manifest for linux/amd64") || !strings.Contains(err.Error(), "linux/arm/v7") ||
		strings.Contains(err.Error(), "unknown") {
		t.Errorf("got %v", err)
	}
	single := host + "/single:1"
	if err := imagetest.Push(t.Context(), single, testImage(t, "single")); err != nil {
		t.Fatal(err)
	}
	_, err = s.Pull(t.Context(), single, PullOptions{Platform: &ocispec.Platform{OS: "linux", Architecture: "arm64"}})
	if !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "does not match the specified platform (linux/arm64)") {
		t.Errorf("got %v", err)
	}
}

func TestPullErrors(t *testing.T) {
	s := openStore(t, Options{})
	l := newLiar(t)
	ref := l.push(t, "app:1", testImage(t, "x"))
	for _, c := range []struct {
		ref  string
		kind error
		text string
	}{
		{"UPPER", ErrBadName, "must be lowercase"},
		{"a b", ErrBadName, "invalid reference format"},
		{l.host + "/app:2", ErrNotFound, "manifest for " + l.host + "/app:2 not found: manifest unknown"},
		{l.host + "/nothere", ErrNotFound, "repository " + l.host + "/nothere not found"},
	} {
		_, err := s.Pull(t.Context(), c.ref, PullOptions{})
		if !errors.Is(err, c.kind) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: got %v", c.ref, err)
		}
	}
	l.lie = func(w http.ResponseWriter, r *http.Request, _ func() *httptest.ResponseRecorder) bool {
		if strings.Contains(r.URL.Path, "/manifests/") {
			w.WriteHeader(http.StatusUnauthorized)
			return true
		}
		return false
	}
	_, err := s.Pull(t.Context(), ref, PullOptions{})
	if !errors.Is(err, ErrDenied) || !strings.Contains(err.Error(), "pull access denied for "+l.host+"/app, repository does not exist or may require 'docker login'") {
		t.Errorf("got %v", err)
	}
}

type fixedKeychain struct {
	auth authn.Authenticator
	err  error
}

func (k fixedKeychain) Resolve(authn.Resource) (authn.Authenticator, error) { return k.auth, k.err }

func TestPullCredentials(t *testing.T) {
	l := newLiar(t)
	ref := l.push(t, "private:1", testImage(t, "x"))
	l.lie = func(w http.ResponseWriter, r *http.Request, _ func() *httptest.ResponseRecorder) bool {
		if u, p, _ := r.BasicAuth(); u == "me" && p == "secret" {
			return false
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="r"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	}
	s := openStore(t, Options{Keychain: fixedKeychain{err: errors.New("helper not in PATH")}})
	if _, err := s.Pull(t.Context(), ref, PullOptions{}); !errors.Is(err, ErrDenied) || !strings.Contains(err.Error(), "helper not in PATH") {
		t.Errorf("got %v", err)
	}
	if _, err := s.Pull(t.Context(), ref, PullOptions{Username: "me", Password: "wrong"}); !errors.Is(err, ErrDenied) {
		t.Errorf("got %v", err)
	}
	if _, err := s.Pull(t.Context(), ref, PullOptions{Username: "me", Password: "secret"}); err != nil {
		t.Error(err)
	}
	s2 := openStore(t, Options{Keychain: fixedKeychain{auth: &authn.Basic{Username: "me", Password: "secret"}}})
	if _, err := s2.Pull(t.Context(), ref, PullOptions{}); err != nil {
		t.Error(err)
	}
}

func TestPullLies(t *testing.T) {
	img := testImage(t, "one", "two")
	layer := must(must(img.Layers())[0].Digest())
	config := must(img.ConfigName())
	manifest := must(img.Digest())
	for name, lie := range map[string]func(w http.ResponseWriter, r *http.Request, honest func() *httptest.ResponseRecorder) bool{
		"manifest changed": func(w http.ResponseWriter, r *http.Request, honest func() *httptest.ResponseRecorder) bool {
			if !strings.HasSuffix(r.URL.Path, manifest.String()) {
				return false
			}
			rec := honest()
			answer(w, rec, append(rec.Body.Bytes(), ' '))
			return true
		},
		"config changed": func(w http.ResponseWriter, r *http.Request, honest func() *httptest.ResponseRecorder) bool {
			if !blobIs(r, config) {
				return false
			}
			rec := honest()
			answer(w, rec, bytes.Replace(rec.Body.Bytes(), []byte("true"), []byte("evil"), 1))
			return true
		},
		"config endless": func(w http.ResponseWriter, r *http.Request, honest func() *httptest.ResponseRecorder) bool {
			if !blobIs(r, config) {
				return false
			}
			w.WriteHeader(http.StatusOK)
			for b := make([]byte, 1<<20); ; {
				if _, err := w.Write(b); err != nil {
					return true
				}
			}
		},
		"layer changed": func(w http.ResponseWriter, r *http.Request, honest func() *httptest.ResponseRecorder) bool {
			if !blobIs(r, layer) {
				return false
			}
			rec := honest()
			answer(w, rec, bytes.Replace(rec.Body.Bytes(), []byte{0}, []byte{1}, 1))
			return true
		},
		"layer short": func(w http.ResponseWriter, r *http.Request, honest func() *httptest.ResponseRecorder) bool {
			if !blobIs(r, layer) {
				return false
			}
			rec := honest()
			answer(w, rec, rec.Body.Bytes()[:rec.Body.Len()-9])
			return true
		},
		"layer long": func(w http.ResponseWriter, r *http.Request, honest func() *httptest.ResponseRecorder) bool {
			if !blobIs(r, layer) {
				return false
			}
			rec := honest()
			answer(w, rec, append(rec.Body.Bytes(), 0))
			return true
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLiar(t)
			s := openStore(t, Options{})
			l.push(t, "app:1", img)
			l.lie = lie
			_, err := s.Pull(t.Context(), l.host+"/app@"+manifest.String(), PullOptions{})
			if !errors.Is(err, ErrInvalid) {
				t.Errorf("got %v", err)
			}
			t.Log(err)
		})
	}
	t.Run("diff ids", func(t *testing.T) {
		l := newLiar(t)
		s := openStore(t, Options{})
		cf := must(img.ConfigFile()).DeepCopy()
		cf.RootFS.DiffIDs[0], cf.RootFS.DiffIDs[1] = cf.RootFS.DiffIDs[1], cf.RootFS.DiffIDs[0]
		ref := l.push(t, "app:1", must(mutate.ConfigFile(img, cf)))
		_, err := s.Pull(t.Context(), ref, PullOptions{})
		if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "config says") {
			t.Errorf("got %v", err)
		}
	})
}

// A download that breaks off goes on where it was, with a range if the registry knows how.
func TestPullResumes(t *testing.T) {
	for _, ranges := range []bool{true, false} {
		l := newLiar(t)
		s := openStore(t, Options{})
		img := testImage(t, "one")
		layer := must(must(img.Layers())[0].Digest())
		ref := l.push(t, "app:1", img)
		var breaks int
		l.lie = func(w http.ResponseWriter, r *http.Request, honest func() *httptest.ResponseRecorder) bool {
			if !blobIs(r, layer) {
				return false
			}
			if breaks++; breaks > 2 {
				if !ranges {
					r.Header.Del("Range")
				}
				return false
			}
			rec := honest()
			w.Header().Set("Content-Length", rec.Header().Get("Content-Length"))
			w.WriteHeader(rec.Code)
			w.Write(rec.Body.Bytes()[:rec.Body.Len()/2])
			return true
		}
		if _, err := s.Pull(t.Context(), ref, PullOptions{}); err != nil {
			t.Errorf("ranges %v: %v", ranges, err)
		}
	}
}

// hang makes the first answer for a layer stop in its middle until release is closed.
func hang(l *liar, layer v1.Hash, release chan struct{}) (hanging chan struct{}) {
	hanging = make(chan struct{})
	var once sync.Once
	l.lie = func(w http.ResponseWriter, r *http.Request, honest func() *httptest.ResponseRecorder) bool {
		if !blobIs(r, layer) {
			return false
		}
		rec := honest()
		b := rec.Body.Bytes()
		w.Header().Set("Content-Length", rec.Header().Get("Content-Length"))
		w.Write(b[:len(b)/2])
		w.(http.Flusher).Flush()
		once.Do(func() { close(hanging) })
		select {
		case <-release:
			w.Write(b[len(b)/2:])
		case <-r.Context().Done():
		}
		return true
	}
	return hanging
}

func TestPullCancelled(t *testing.T) {
	l := newLiar(t)
	s := openStore(t, Options{})
	img := testImage(t, "one", "two")
	ref := l.push(t, "app:1", img)
	hanging := hang(l, must(must(img.Layers())[1].Digest()), nil)
	ctx, cancel := context.WithCancel(t.Context())
	result := make(chan error, 1)
	go func() { _, err := s.Pull(ctx, ref, PullOptions{}); result <- err }()
	<-hanging
	cancel()
	select {
	case err := <-result:
		if !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("pull does not end")
	}
	checkClean(t, s)
}

func TestPullStalled(t *testing.T) {
	l := newLiar(t)
	s := openStore(t, Options{Stall: 100 * time.Millisecond})
	img := testImage(t, "one")
	ref := l.push(t, "app:1", img)
	hang(l, must(must(img.Layers())[0].Digest()), nil)
	start := time.Now()
	_, err := s.Pull(t.Context(), ref, PullOptions{})
	if err == nil || errors.Is(err, context.Canceled) || time.Since(start) > 10*time.Second {
		t.Errorf("got %v after %v", err, time.Since(start))
	}
	t.Log(err)
}

// Pulls that need the same layer share its download, and the one that began it may leave.
func TestPullShared(t *testing.T) {
	l := newLiar(t)
	s := openStore(t, Options{})
	img := testImage(t, "one", "two")
	ref := l.push(t, "app:1", img)
	release := make(chan struct{})
	hanging := hang(l, must(must(img.Layers())[1].Digest()), release)
	leader, leave := context.WithCancel(t.Context())
	leaderErr := make(chan error, 1)
	go func() { _, err := s.Pull(leader, ref, PullOptions{}); leaderErr <- err }()
	<-hanging
	first := digest.Digest(must(must(img.Layers())[0].DiffID()).String())
	within(t, 5*time.Second, "the other layer is there", func() bool {
		s.flights.mu.Lock()
		defer s.flights.mu.Unlock()
		_, ok := s.layers.get(first)
		return ok && len(s.flights.m) == 1
	})
	const others = 8
	errs := make(chan error, others)
	var seen statuses
	for range others {
		go func() { _, err := s.Pull(t.Context(), ref, PullOptions{Progress: seen.add}); errs <- err }()
	}
	within(t, 5*time.Second, "the others wait", func() bool {
		s.flights.mu.Lock()
		defer s.flights.mu.Unlock()
		for _, f := range s.flights.m {
			return len(f.watch) == others+1
		}
		return false
	})
	leave()
	if err := <-leaderErr; !errors.Is(err, context.Canceled) {
		t.Errorf("leader: %v", err)
	}
	close(release)
	for range others {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	// Two layers once each; the config by each of the pulls.
	if n := l.blobGets(); n != 2+others+1 {
		t.Errorf("%d downloads", n)
	}
	if seen.count("Pull complete") != others {
		t.Errorf("%d times Pull complete", seen.count("Pull complete"))
	}
}

func TestPlainHTTP(t *testing.T) {
	s := openStore(t, Options{Transport: refuseAll{}})
	for host, plain := range map[string]bool{
		"127.0.0.1:5000": true, "localhost:5000": true, "127.9.9.9:5000": true, "[::1]:5000": true, "x.localhost:5000": true,
		"10.0.0.1:5000": false, "192.168.1.1": false, "example.com": false, "127.0.0.1.example.com": false,
	} {
		if isLoopback(host) != plain {
			t.Errorf("%s: loopback %v", host, !plain)
		}
	}
	_, err := s.Pull(t.Context(), "10.0.0.1:5000/app", PullOptions{})
	if err == nil || !strings.Contains(err.Error(), "refusing plain HTTP") {
		t.Errorf("got %v", err)
	}
	_, err = s.Pull(t.Context(), "10.0.0.1:5000/app", PullOptions{PlainHTTP: true})
	if err == nil || !strings.Contains(err.Error(), "no network for http") {
		t.Errorf("got %v", err)
	}
}

type refuseAll struct{}

func (refuseAll) RoundTrip(r *http.Request) (*http.Response, error) {
	return nil, errors.New("no network for " + r.URL.Scheme)
}

func TestBusyboxImage(t *testing.T) {
	if _, err := os.Stat(imagetest.Busybox); err != nil {
		t.Skip("needs busybox-static")
	}
	a, b := must(imagetest.BusyboxImage(imagetest.Busybox)), must(imagetest.BusyboxImage(imagetest.Busybox))
	if idOf(t, a) != idOf(t, b) {
		t.Error("not the same twice")
	}
	s := openStore(t, Options{})
	got, err := load(s, dockerArchive(t, "busybox:test", a))
	if err != nil || got[0].ID != idOf(t, a) || got[0].Config.Config.Cmd[0] != "sh" {
		t.Errorf("got %v %v", got, err)
	}
}
