package main

import (
	"archive/tar"
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// archive makes a tar stream; a body that is not empty makes a file, a name ending in a slash a directory.
func archive(t *testing.T, headers ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		body := h.PAXRecords["body"]
		h.PAXRecords = nil
		h.Mode, h.Size = 0o644, int64(len(body))
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(body)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func file(name, body string) tar.Header {
	return tar.Header{Typeflag: tar.TypeReg, Name: name, PAXRecords: map[string]string{"body": body}}
}

func TestSummon(t *testing.T) {
	h := newHouse(t)
	node := &fakeNode{Summoned: archive(t, file("kernel", "bzImage"), file("layers/0.erofs", "layer"), file(summonedFile, "{}"))}
	env := []string{envHost + "=" + serveFake(t, node)}
	dir := filepath.Join(h.dir, "vm")
	if r := h.cradle(t, env, "summon", dir, "redis"); r.code != 0 {
		t.Fatalf("%+v", r)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "layers/0.erofs")); string(b) != "layer" {
		t.Errorf("%q, %v", b, err)
	}
	if r := h.cradle(t, env, "summon", dir, "redis"); r.code != 1 || !strings.HasSuffix(r.stderr, "/vm is not empty\n") {
		t.Errorf("a second time: %+v", r)
	}
	empty := []string{envHost + "=" + serveFake(t, &fakeNode{})}
	r := h.cradle(t, empty, "summon", dir+"2", "nope")
	if r.code != 1 || !strings.HasPrefix(r.stderr, "Unable to find image 'nope' locally\n") {
		t.Errorf("missing image: %+v", r)
	}
	if isDir(dir + "2") {
		t.Error("a failed summon left a directory")
	}
}

func TestUnpackSummonedRefuses(t *testing.T) {
	ok := file(summonedFile, "{}")
	whole := archive(t, file("kernel", strings.Repeat("k", 4096)), ok)
	for name, c := range map[string]struct {
		stream []byte
		want   string
	}{
		"parent":    {archive(t, file("../escaped", "x"), ok), "unsafe name"},
		"absolute":  {archive(t, file("/escaped", "x"), ok), "unsafe name"},
		"dots":      {archive(t, file("a/../../escaped", "x"), ok), "unsafe name"},
		"symlink":   {archive(t, tar.Header{Typeflag: tar.TypeSymlink, Name: "layers", Linkname: "/"}, ok), "neither a file nor a directory"},
		"hard link": {archive(t, tar.Header{Typeflag: tar.TypeLink, Name: "passwd", Linkname: "/etc/passwd"}, ok), "neither a file nor a directory"},
		"device":    {archive(t, tar.Header{Typeflag: tar.TypeBlock, Name: "sda"}, ok), "neither a file nor a directory"},
		"twice":     {archive(t, file("kernel", "1"), file("kernel", "2"), ok), "file exists"},
		"no list":   {archive(t, file("kernel", "k")), "no " + summonedFile},
		"truncated": {whole[:2048], "unexpected EOF"},
		"garbage":   {bytes.Repeat([]byte("garbage "), 200), "reading the virtual machine"},
		"empty":     {nil, "no " + summonedFile},
	} {
		t.Run(name, func(t *testing.T) {
			parent := t.TempDir()
			err := unpackSummoned(bytes.NewReader(c.stream), filepath.Join(parent, "vm"))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
			if left, _ := os.ReadDir(parent); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

func TestSummonedDir(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	for _, d := range []string{"vm", "plain", "odd/" + summonedFile} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile("vm/"+summonedFile, []byte("{}"), 0o644); err != nil {
		t.Fatal(err)
	}
	for arg, want := range map[string]string{
		"./vm":                             filepath.Join(dir, "vm"),
		"./vm/":                            filepath.Join(dir, "vm"),
		"./plain/..":                       "",
		dir + "/vm":                        filepath.Join(dir, "vm"),
		"../" + filepath.Base(dir) + "/vm": filepath.Join(dir, "vm"),
		"vm":                               "", // an image's name
		"./plain":                          "",
		"./odd":                            "",
		"./none":                           "",
		"redis":                            "",
		"127.0.0.1:5000/redis":             "",
		"":                                 "",
	} {
		got, ok := summonedDir(arg)
		if got != want || ok != (want != "") {
			t.Errorf("summonedDir(%q) = %q, %v; want %q", arg, got, ok, want)
		}
	}
}

func TestRunSummoned(t *testing.T) {
	h := newHouse(t)
	dir := filepath.Join(h.dir, "vm")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for list, image := range map[string]string{
		`{"image":"redis:7"}`:         "redis:7",
		`{"image":"not an image: !"}`: "summoned",
		`torn`:                        "summoned",
	} {
		if err := os.WriteFile(filepath.Join(dir, summonedFile), []byte(list), 0o644); err != nil {
			t.Fatal(err)
		}
		node := &fakeNode{}
		r := h.cradle(t, []string{envHost + "=" + serveFake(t, node)}, "run", "--label", "mine=1", dir, "true")
		if r.code != 0 {
			t.Errorf("%+v", r)
		}
		node.mu.Lock()
		created := node.created
		node.mu.Unlock()
		for _, want := range []string{`"dev.cradle.summoned":"` + dir + `"`, `"mine":"1"`, `"Image":"` + image + `"`} {
			if !strings.Contains(created, want) {
				t.Errorf("%s: the request lacks %s: %s", list, want, created)
			}
		}
	}
}
