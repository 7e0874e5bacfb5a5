package image

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/klauspost/compress/zstd"
	digest "github.com/opencontainers/go-digest"

	"github.com/cradlevm/cradle/erofs"
	"github.com/cradlevm/cradle/image/imagetest"
)

type entries = []imagetest.File

// configOf makes an image config for layers of plain tars.
func configOf(layers ...[]byte) []byte {
	var ids []digest.Digest
	for _, l := range layers {
		ids = append(ids, digest.FromBytes(l))
	}
	return must(json.Marshal(map[string]any{
		"os": "linux", "architecture": "amd64", "rootfs": map[string]any{"type": "layers", "diff_ids": ids},
	}))
}

func manifestJSON(config string, tags []string, layers ...string) []byte {
	return must(json.Marshal([]savedImage{{Config: config, RepoTags: tags, Layers: layers}}))
}

func TestLoad(t *testing.T) {
	img := testImage(t, "one", "two")
	archive := dockerArchive(t, "example.com/app:1", img)
	enc := must(zstd.NewWriter(nil))
	for name, b := range map[string][]byte{
		"plain": archive, "gzip": imagetest.Gzip(archive), "zstd": enc.EncodeAll(archive, nil),
	} {
		s := openStore(t, Options{})
		got, err := load(s, b)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if len(got) != 1 || got[0].ID != idOf(t, img) || !slices.Equal(got[0].RepoTags, []string{"example.com/app:1"}) {
			t.Errorf("%s: got %+v", name, got)
		}
		if !bytes.Equal(layerTar(t, s, got[0].Layers[1]), testTar("two")) {
			t.Errorf("%s: layer differs", name)
		}
	}
}

// ociLayout packs an OCI layout directory made by somebody else's code.
func ociLayout(t testing.TB, build func(layout.Path)) []byte {
	t.Helper()
	dir := t.TempDir()
	p, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	build(p)
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	if err := tw.AddFS(os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	tw.Close()
	return b.Bytes()
}

func TestLoadOCI(t *testing.T) {
	img := testImage(t, "one", "two")
	foreign := must(imagetest.PlatformImage(v1.Platform{OS: "linux", Architecture: "s390x"}, v1.Config{}, testTar("one")))
	named := func(n string) layout.Option {
		return layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": n})
	}
	s := openStore(t, Options{})
	got, err := load(s, ociLayout(t, func(p layout.Path) {
		idx := mutate.AppendManifests(empty.Index,
			mutate.IndexAddendum{Add: foreign, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "s390x"}}},
			mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "amd64"}}})
		must(0, p.AppendIndex(idx, named("app:multi")))
		must(0, p.AppendImage(testImage(t, "three"), named("latest")))
	}))
	if err != nil || len(got) != 2 {
		t.Fatalf("got %v %v", got, err)
	}
	if got[0].ID != idOf(t, img) || !slices.Equal(got[0].RepoTags, []string{"app:multi"}) || len(got[1].RepoTags) != 0 {
		t.Errorf("got %+v", got)
	}
	_, err = load(s, ociLayout(t, func(p layout.Path) {
		idx := mutate.AppendManifests(empty.Index,
			mutate.IndexAddendum{Add: foreign, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "s390x"}}})
		must(0, p.AppendIndex(idx))
	}))
	if !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "it has linux/s390x") {
		t.Errorf("got %v", err)
	}
}

// Old archives have symbolic links among their entries, and manifest.json may come first or last.
func TestLoadLinks(t *testing.T) {
	layer := testTar("one")
	config := configOf(layer, layer)
	m := imagetest.File{Name: "manifest.json", Body: manifestJSON("c.json", []string{"old:1"}, "a/layer.tar", "./b/layer.tar")}
	rest := entries{
		{Name: "./a/"}, {Name: "b/layer.tar", Link: "../a/layer.tar"}, {Name: "a/layer.tar", Body: layer},
		{Name: "c.json", Body: config}, {Name: "repositories", Body: []byte("{}")},
	}
	for _, files := range []entries{append(entries{m}, rest...), append(slices.Clone(rest), m)} {
		s := openStore(t, Options{})
		got, err := load(s, imagetest.Tar(files...))
		if err != nil || len(got[0].Layers) != 2 || got[0].ID != digest.FromBytes(config).String() {
			t.Errorf("got %v %v", got, err)
		}
	}
}

func TestLoadLies(t *testing.T) {
	good, other := testTar("good"), testTar("other")
	config := configOf(good)
	name := func(b []byte) string { return "blobs/sha256/" + digest.FromBytes(b).Encoded() }
	m := func(layer string) imagetest.File {
		return imagetest.File{Name: "manifest.json", Body: manifestJSON("c.json", nil, layer)}
	}
	c := imagetest.File{Name: "c.json", Body: config}
	l := imagetest.File{Name: "l.tar", Body: good}
	gz := imagetest.Gzip(good)
	huge := bytes.Repeat([]byte(" "), maxDocument+1)
	for what, files := range map[string]entries{
		"nothing":              {},
		"no manifest":          {c, l},
		"manifest is no JSON":  {{Name: "manifest.json", Body: []byte("{")}},
		"manifest is empty":    {{Name: "manifest.json", Body: []byte("[]")}},
		"no layer":             {m("l.tar"), c},
		"no config":            {m("l.tar"), l},
		"wrong layer":          {m("l.tar"), c, {Name: "l.tar", Body: other}},
		"layer is no tar":      {m("l.tar"), c, {Name: "l.tar", Body: []byte("hello")}},
		"layer is truncated":   {m("l.tar"), c, {Name: "l.tar", Body: gz[:len(gz)-12]}},
		"layer is damaged":     {m("l.tar"), c, {Name: "l.tar", Body: append(slices.Clone(gz[:60]), make([]byte, 200)...)}},
		"too few layers":       {{Name: "manifest.json", Body: manifestJSON("c.json", nil)}, c, l},
		"digest not the name":  {m(name(good)), c, {Name: name(good), Body: other}},
		"config not the name":  {{Name: "manifest.json", Body: manifestJSON(digest.FromBytes(good).Encoded()+".json", nil, "l.tar")}, {Name: digest.FromBytes(good).Encoded() + ".json", Body: config}, l},
		"blob not the name":    {m("l.tar"), c, l, {Name: name([]byte("x")), Body: []byte("{}")}},
		"outside":              {m("l.tar"), c, l, {Name: "../x", Body: []byte("x")}},
		"absolute":             {m("l.tar"), c, l, {Name: "/etc/passwd", Body: []byte("x")}},
		"link outside":         {m("l.tar"), c, {Name: "l.tar", Link: "../../etc/passwd"}},
		"link absolute":        {m("l.tar"), c, {Name: "l.tar", Link: "/etc/passwd"}},
		"links in a loop":      {m("l.tar"), c, {Name: "l.tar", Link: "k.tar"}, {Name: "k.tar", Link: "l.tar"}},
		"link to nothing":      {m("l.tar"), c, {Name: "l.tar", Link: "k.tar"}},
		"manifest names out":   {m("../l.tar"), c, l},
		"invalid tag":          {{Name: "manifest.json", Body: manifestJSON("c.json", []string{"Bad Tag"}, "l.tar")}, c, l},
		"config too large":     {m("l.tar"), {Name: "c.json", Body: append(huge, config...)}, l},
		"config for windows":   {m("l.tar"), {Name: "c.json", Body: bytes.Replace(config, []byte("linux"), []byte("windows"), 1)}, l},
		"diff id is a path":    {m("l.tar"), {Name: "c.json", Body: bytes.Replace(config, []byte(`["sha256:`), []byte(`["sha256:/../`), 1)}, l},
		"index without blobs":  {{Name: "index.json", Body: []byte(`{"schemaVersion":2,"manifests":[{"digest":"` + digest.FromBytes(good).String() + `","size":1}]}`)}},
		"index with bad names": {{Name: "index.json", Body: []byte(`{"schemaVersion":2,"manifests":[{"digest":"../../x","size":1}]}`)}},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			s := openStore(t, Options{})
			kept := must(load(s, dockerArchive(t, "kept:1", testImage(t, "kept"))))
			_, err := load(s, imagetest.Tar(files...))
			if !errors.Is(err, ErrInvalid) {
				t.Errorf("got %v", err)
			}
			t.Log(err)
			if list := must(s.List()); len(list) != 1 || !bytes.Equal(layerTar(t, s, list[0].Layers[0]), testTar("kept")) {
				t.Errorf("image loaded before is harmed: %v %v", list, kept)
			}
			checkClean(t, s)
		})
	}
}

func TestLoadTruncated(t *testing.T) {
	plain := dockerArchive(t, "app:1", testImage(t, "one", "two"))
	s := openStore(t, Options{})
	for _, archive := range [][]byte{plain, imagetest.Gzip(plain), []byte("<html>"), bytes.Repeat([]byte("no tar "), 999)} {
		for _, n := range []int{1, 700, len(archive) / 2, len(archive) - 5} {
			if n > len(archive)-5 {
				continue
			}
			if bytes.Equal(archive, plain) && n == len(archive)-5 {
				continue // padding only
			}
			if _, err := load(s, archive[:n]); !errors.Is(err, ErrInvalid) {
				t.Errorf("%d of %d bytes: %v", n, len(archive), err)
			}
		}
	}
	broken := errors.New("the cable is out")
	for _, archive := range [][]byte{plain, imagetest.Gzip(plain)} {
		r := io.MultiReader(bytes.NewReader(archive[:len(archive)/2]), errReader{broken})
		if _, err := s.Load(t.Context(), r, nil); !errors.Is(err, broken) {
			t.Errorf("got %v", err)
		}
	}
}

type errReader struct{ err error }

func (r errReader) Read([]byte) (int, error) { return 0, r.err }

func TestLoadCancelled(t *testing.T) {
	archive := dockerArchive(t, "app:1", testImage(t, "one", "two"))
	for _, n := range []int{0, 300, 2000, len(archive) / 2} {
		s := openStore(t, Options{})
		ctx, cancel := context.WithCancel(t.Context())
		pr, pw := io.Pipe()
		go func() {
			pw.Write(archive[:n])
			cancel()
		}()
		done := make(chan error, 1)
		go func() { _, err := s.Load(ctx, pr, nil); done <- err }()
		select {
		case err := <-done:
			if !errors.Is(err, context.Canceled) {
				t.Errorf("got %v", err)
			}
		case <-time.After(5 * time.Second):
			t.Fatal("load does not end")
		}
		pr.Close()
		checkClean(t, s)
	}
}

// zeros is a gzip stream of n zero bytes: a bomb.
func zeros(n int64) io.Reader {
	pr, pw := io.Pipe()
	go func() {
		z := must(zstd.NewWriter(pw))
		b := make([]byte, 1<<20)
		for ; n > 0; n -= int64(len(b)) {
			z.Write(b[:min(n, int64(len(b)))])
		}
		z.Close()
		pw.Close()
	}()
	return pr
}

func TestBombs(t *testing.T) {
	bomb := must(io.ReadAll(zeros(512 << 20)))
	s := openStore(t, Options{MaxLayerBytes: 32 << 20, MaxArchiveBytes: 64 << 20})
	if _, err := s.Load(t.Context(), bytes.NewReader(bomb), nil); !errors.Is(err, ErrInvalid) {
		t.Errorf("archive: got %v", err)
	}
	files := entries{
		{Name: "manifest.json", Body: manifestJSON("c.json", nil, "l")},
		{Name: "c.json", Body: configOf([]byte("x"))}, {Name: "l", Body: bomb},
	}
	_, err := load(s, imagetest.Tar(files...))
	if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "larger than the limit") {
		t.Errorf("layer: got %v", err)
	}
	var big bytes.Buffer
	tw := tar.NewWriter(&big)
	tw.WriteHeader(&tar.Header{Name: "zeros", Size: 40 << 20, Mode: 0o644})
	tw.Write(make([]byte, 40<<20))
	tw.Close()
	if _, err := s.Import(t.Context(), &big, "", emptyConfig()); !errors.Is(err, ErrInvalid) {
		t.Errorf("import: got %v", err)
	}
}

func TestDiskFull(t *testing.T) {
	s := openStore(t, Options{})
	kept := must(load(s, dockerArchive(t, "kept:1", testImage(t, "kept"))))[0]
	s.fromTar = func(f *os.File, r io.Reader, _ erofs.Options) (erofs.Info, error) {
		io.CopyN(f, r, 100)
		return erofs.Info{}, fmt.Errorf("write erofs: %w", &os.PathError{Op: "write", Path: f.Name(), Err: syscall.ENOSPC})
	}
	_, err := load(s, dockerArchive(t, "app:1", testImage(t, "one")))
	if !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "not enough disk space") {
		t.Errorf("got %v", err)
	}
	if got, err := s.Get("kept:1"); err != nil || got.ID != kept.ID {
		t.Errorf("got %v %v", got, err)
	}
	checkClean(t, s)
}

func TestLoadConcurrently(t *testing.T) {
	s := openStore(t, Options{})
	var mu sync.Mutex
	conversions := 0
	s.fromTar = func(f *os.File, r io.Reader, o erofs.Options) (erofs.Info, error) {
		mu.Lock()
		conversions++
		mu.Unlock()
		return erofs.FromTar(f, r, o)
	}
	must(load(s, dockerArchive(t, "app:1", testImage(t, "one", "two"))))
	var saved bytes.Buffer
	must(0, s.Save(t.Context(), []string{"app:1"}, &saved))
	must2(s.Remove("app:1", false))
	conversions = 0
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			if _, err := load(s, saved.Bytes()); err != nil {
				t.Error(i, err)
			}
		})
	}
	wg.Wait()
	if conversions != 2 {
		t.Errorf("%d conversions of 2 layers", conversions)
	}
}

func must2(_, _ []string, err error) {
	if err != nil {
		panic(err)
	}
}

func TestLargeLayer(t *testing.T) {
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	for i := range 100_000 {
		tw.WriteHeader(&tar.Header{Name: fmt.Sprintf("d%03d/f%d", i%100, i), Mode: 0o644, Typeflag: tar.TypeReg})
	}
	tw.Close()
	s := openStore(t, Options{})
	start := time.Now()
	img, err := s.Import(t.Context(), bytes.NewReader(b.Bytes()), "many:1", emptyConfig())
	if err != nil || img.Size != int64(b.Len()) {
		t.Fatal(err)
	}
	t.Logf("%d bytes, 100,000 entries in %v", b.Len(), time.Since(start))
	if !bytes.Equal(layerTar(t, s, img.Layers[0]), b.Bytes()) {
		t.Error("differs")
	}
}

// What others read must be what we write, and the other way round.
func TestSkopeo(t *testing.T) {
	skopeo, err := exec.LookPath("skopeo")
	if err != nil {
		t.Skip("needs skopeo")
	}
	s := openStore(t, Options{})
	img := testImage(t, "one", "two")
	must(load(s, dockerArchive(t, "app:1", img)))
	dir := t.TempDir()
	saved := filepath.Join(dir, "saved.tar")
	f := must(os.Create(saved))
	must(0, s.Save(t.Context(), []string{"app:1"}, f))
	f.Close()
	for i, c := range [][2]string{
		{"docker-archive:" + saved, "oci-archive:" + dir + "/0.tar:app:2"},
		{"oci-archive:" + saved, "docker-archive:" + dir + "/1.tar:app:2"},
		{"docker-archive:" + saved, "docker-archive:" + dir + "/2.tar:app:2"},
	} {
		cmd := exec.Command(skopeo, "copy", "--insecure-policy", "--tmpdir", dir, c[0], c[1])
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v: %v\n%s", c, err, out)
			continue
		}
		s2 := openStore(t, Options{})
		r := must(os.Open(filepath.Join(dir, fmt.Sprint(i, ".tar"))))
		got, err := s2.Load(t.Context(), r, nil)
		r.Close()
		if err != nil || len(got) != 1 || !slices.Equal(got[0].RepoTags, []string{"app:2"}) {
			t.Errorf("%v: got %v %v", c, got, err)
		}
	}
}

// An archive that is to be one image's gives it no name, and is refused whole if it is another's or has more.
func TestLoadUnnamed(t *testing.T) {
	s := openStore(t, Options{})
	other := must(load(s, dockerArchive(t, "app:1", testImage(t, "other"))))[0]
	img := testImage(t, "one", "two")
	archive := dockerArchive(t, "app:1", img)
	if _, err := s.LoadUnnamed(t.Context(), bytes.NewReader(archive), other.ID); !errors.Is(err, ErrInvalid) {
		t.Errorf("another's: %v", err)
	}
	if list := must(s.List()); len(list) != 1 {
		t.Errorf("%d images", len(list))
	}
	got, err := s.LoadUnnamed(t.Context(), bytes.NewReader(archive), idOf(t, img))
	if err != nil || got.ID != idOf(t, img) || len(got.RepoTags) > 0 || len(got.Layers) != 2 {
		t.Errorf("%+v, %v", got, err)
	}
	if named := must(s.Get("app:1")); named.ID != other.ID {
		t.Errorf("the name is %s's", named.ID)
	}
	if _, err := s.LoadUnnamed(t.Context(), bytes.NewReader(dockerArchive(t, "app:2", testImage(t, "other"))), other.ID); err != nil {
		t.Error(err) // it is there, and keeps the name it has
	}
	if named := must(s.Get("app:1")); named.ID != other.ID {
		t.Errorf("the name is %s's", named.ID)
	}
	both := must(s.List())
	var saved bytes.Buffer
	must(0, s.Save(t.Context(), []string{both[0].ID, both[1].ID}, &saved))
	if _, err := s.LoadUnnamed(t.Context(), &saved, other.ID); !errors.Is(err, ErrInvalid) {
		t.Errorf("two: %v", err)
	}
}
