// Package imagetest makes small images for tests of this and other packages: the same bytes at every run, from what
// the machine has, without network.
package imagetest

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"os/exec"
	"path"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Busybox is where Debian's busybox-static puts its binary.
const Busybox = "/usr/bin/busybox"

// File is an entry of a layer. A name that ends in "/" is a directory, one with a Link a symbolic link.
type File struct {
	Name string
	Mode int64 // 0: 0755 for directories, 0644 for files
	Link string
	Body []byte
}

// Tar returns the tar of the files, in the given order, owned by root and of no particular time.
func Tar(files ...File) []byte {
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	for _, f := range files {
		h := &tar.Header{Name: f.Name, Mode: f.Mode, Size: int64(len(f.Body)), Typeflag: tar.TypeReg, ModTime: time.Unix(0, 0)}
		switch {
		case strings.HasSuffix(f.Name, "/"):
			h.Typeflag = tar.TypeDir
			if h.Mode == 0 {
				h.Mode = 0o755
			}
		case f.Link != "":
			h.Typeflag, h.Linkname, h.Mode = tar.TypeSymlink, f.Link, 0o777
		case h.Mode == 0:
			h.Mode = 0o644
		}
		// A bytes.Buffer takes everything; only a malformed File fails here.
		if err := tw.WriteHeader(h); err != nil {
			panic(err)
		}
		if _, err := tw.Write(f.Body); err != nil {
			panic(err)
		}
	}
	if err := tw.Close(); err != nil {
		panic(err)
	}
	return b.Bytes()
}

// Gzip compresses, the same way every time.
func Gzip(b []byte) []byte {
	var z bytes.Buffer
	w := gzip.NewWriter(&z)
	w.Write(b)
	w.Close()
	return z.Bytes()
}

// Layer makes a gzip layer of a tar.
func Layer(tarBytes []byte) (v1.Layer, error) {
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(tarBytes)), nil
	}, tarball.WithMediaType(types.DockerLayer))
}

// Image makes a linux/amd64 image of gzip layers, lowest first, from their tars.
func Image(config v1.Config, tars ...[]byte) (v1.Image, error) {
	return PlatformImage(v1.Platform{OS: "linux", Architecture: "amd64"}, config, tars...)
}

// PlatformImage is Image for another platform.
func PlatformImage(p v1.Platform, config v1.Config, tars ...[]byte) (v1.Image, error) {
	img := empty.Image
	for i, t := range tars {
		l, err := Layer(t)
		if err != nil {
			return nil, err
		}
		img, err = mutate.Append(img, mutate.Addendum{Layer: l, History: v1.History{
			Created: v1.Time{Time: time.Unix(0, 0).UTC()}, CreatedBy: fmt.Sprintf("layer %d", i),
		}})
		if err != nil {
			return nil, err
		}
	}
	cf, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	cf = cf.DeepCopy()
	cf.OS, cf.Architecture, cf.Variant = p.OS, p.Architecture, p.Variant
	cf.Config = config
	cf.Created = v1.Time{Time: time.Unix(0, 0).UTC()}
	return mutate.ConfigFile(img, cf)
}

// BusyboxImage makes an image like docker.io's busybox from a static binary (Busybox, usually): its applets as
// links in /bin, the usual directories, passwd and group; it runs sh.
func BusyboxImage(binary string) (v1.Image, error) {
	exe, err := os.ReadFile(binary)
	if err != nil {
		return nil, fmt.Errorf("busybox image: %w", err)
	}
	out, err := exec.Command(binary, "--list").Output()
	if err != nil {
		return nil, fmt.Errorf("busybox image: list applets: %w", err)
	}
	files := []File{
		{Name: "bin/"}, {Name: "dev/"}, {Name: "etc/"}, {Name: "home/"}, {Name: "proc/"},
		{Name: "root/", Mode: 0o700}, {Name: "sys/"}, {Name: "tmp/", Mode: 0o1777}, {Name: "usr/"}, {Name: "var/"},
		{Name: "bin/busybox", Mode: 0o755, Body: exe},
		{Name: "etc/passwd", Body: []byte("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/home:/bin/false\n")},
		{Name: "etc/group", Body: []byte("root:x:0:\nnogroup:x:65534:\n")},
	}
	applets := strings.Fields(string(out))
	sort.Strings(applets)
	for _, a := range applets {
		if a = path.Base(a); a != "busybox" {
			files = append(files, File{Name: "bin/" + a, Link: "busybox"})
		}
	}
	return Image(v1.Config{
		Cmd: []string{"sh"},
		Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
	}, Tar(files...))
}

// WriteDockerArchive writes what "docker save" wrote for many years: layers, config and a manifest.json.
func WriteDockerArchive(w io.Writer, tag string, img v1.Image) error {
	ref, err := name.NewTag(tag)
	if err != nil {
		return err
	}
	return tarball.Write(ref, img, w)
}

// ServeRegistry runs a registry on loopback until the test ends and returns its "host:port".
func ServeRegistry(t testing.TB) string {
	t.Helper()
	srv := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(srv.Close)
	return strings.TrimPrefix(srv.URL, "http://")
}

// Push puts an image (v1.Image) or an index (v1.ImageIndex) into a registry by its whole reference.
func Push(ctx context.Context, ref string, what remote.Taggable) error {
	r, err := name.ParseReference(ref, name.Insecure)
	if err != nil {
		return err
	}
	switch w := what.(type) {
	case v1.Image:
		return remote.Write(r, w, remote.WithContext(ctx))
	case v1.ImageIndex:
		return remote.WriteIndex(r, w, remote.WithContext(ctx))
	}
	return fmt.Errorf("cannot push a %T", what)
}
