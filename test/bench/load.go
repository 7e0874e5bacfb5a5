package main

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	bigImageBytes  = 450 << 20 // uncompressed
	bigImageLayers = 4
	loadRuns       = 5
)

// load measures taking in an image of 450 MB with gzip layers: ours against containerd's import with unpacking, and
// against nothing but decompressing and hashing the same layers one after the other.
func load(ctx context.Context, e env) (rows []row, err error) {
	archive := filepath.Join(e.dir, "big.tar")
	layers, err := bigImage(archive, e.dir)
	if err != nil {
		return nil, err
	}
	d, err := startCradle(ctx, e, "load", booting()...)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, d.stop()) }()
	us := contestant{name: "cradle load", ours: true, once: func(ctx context.Context) error { return d.do(ctx, "load", "-q", "-i", archive) }}
	us.ready = func(ctx context.Context) error {
		_ = d.do(ctx, "rmi", "-f", "big:latest") // the one of the last turn
		return nil
	}
	peer := &importer{e: e, archive: archive}
	defer func() { err = errors.Join(err, peer.stop()) }()
	results, err := race(ctx, min(e.runs, loadRuns), us,
		contestant{name: "gunzip | sha256sum", once: func(ctx context.Context) error { return gunzipAndHash(ctx, layers) }},
		contestant{name: "ctr images import", ready: peer.ready, once: peer.once})
	if err != nil {
		return nil, err
	}
	return []row{
		against("load 450 MB image", results[0], results[1], 1.2),
		against("load 450 MB image", results[0], results[2], 0.5),
	}, nil
}

// importer is containerd's import, which unpacks too, each time into an empty containerd.
type importer struct {
	e       env
	archive string
	c       *containerd
	empty   bool
}

func (p *importer) ready(ctx context.Context) error {
	if p.c != nil && p.empty {
		return nil
	}
	if err := p.stop(); err != nil {
		return err
	}
	var err error
	p.c, err = startContainerd(ctx, p.e, "importer")
	p.empty = err == nil
	return err
}

func (p *importer) once(ctx context.Context) error {
	p.empty = false
	return p.c.do(ctx, "images", "import", p.archive)
}

func (p *importer) stop() error {
	if p.c == nil {
		return nil
	}
	c := p.c
	p.c = nil
	return c.stop()
}

func gunzipAndHash(ctx context.Context, layers []string) error {
	for _, l := range layers {
		cmd := exec.CommandContext(ctx, "sh", "-c", `gzip -dc "$1" | sha256sum >/dev/null`, "sh", l)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
	}
	return nil
}

// tail is the end of what somebody said.
func tail(s string, n int) string { return s[max(0, len(s)-n):] }

// bigImage writes an OCI archive of gzip layers made of this machine's own /usr, and each layer beside it.
func bigImage(archive, dir string) (layers []string, err error) {
	f, err := os.Create(archive)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	t := tar.NewWriter(f)
	next := usrFiles()
	config := ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"}, RootFS: ocispec.RootFS{Type: "layers"}}
	manifest := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	for i := range bigImageLayers {
		path := filepath.Join(dir, fmt.Sprintf("layer%d.tar.gz", i))
		diffID, desc, err := bigLayer(path, next)
		if err != nil {
			return nil, err
		}
		layers = append(layers, path)
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, diffID)
		manifest.Layers = append(manifest.Layers, desc)
		if err := addBlob(t, desc.Digest, path); err != nil {
			return nil, err
		}
	}
	if manifest.Config, err = addJSON(t, ocispec.MediaTypeImageConfig, config); err != nil {
		return nil, err
	}
	desc, err := addJSON(t, ocispec.MediaTypeImageManifest, manifest)
	if err != nil {
		return nil, err
	}
	desc.Annotations = map[string]string{
		ocispec.AnnotationRefName: "latest", "io.containerd.image.name": "docker.io/library/big:latest",
	}
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{desc}}
	for name, v := range map[string]any{"index.json": index, "oci-layout": ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion}} {
		body, err := json.Marshal(v)
		if err != nil {
			return nil, err
		}
		if err := addBytes(t, name, body); err != nil {
			return nil, err
		}
	}
	return layers, errors.Join(t.Close(), f.Close())
}

// usrFiles returns a function that gives the regular files of /usr one by one, and at its end begins anew under
// another directory, so that there is always enough.
func usrFiles() func() (name, path string) {
	var files []string
	err := filepath.WalkDir("/usr", func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			if fi, err := d.Info(); err == nil && fi.Size() < 16<<20 {
				files = append(files, path)
			}
		}
		return nil
	})
	if err != nil || len(files) == 0 {
		panic("no files in /usr")
	}
	i := -1
	return func() (string, string) {
		i++
		return fmt.Sprintf("round%d%s", i/len(files), files[i%len(files)]), files[i%len(files)]
	}
}

func bigLayer(path string, next func() (string, string)) (digest.Digest, ocispec.Descriptor, error) {
	f, err := os.Create(path)
	if err != nil {
		return "", ocispec.Descriptor{}, err
	}
	defer f.Close()
	compressed, plain := sha256.New(), sha256.New()
	z := gzip.NewWriter(io.MultiWriter(f, compressed))
	t := tar.NewWriter(io.MultiWriter(z, plain))
	for total := int64(0); total < bigImageBytes/bigImageLayers; {
		name, source := next()
		body, err := os.ReadFile(source)
		if err != nil {
			continue
		}
		if err := addBytes(t, name, body); err != nil {
			return "", ocispec.Descriptor{}, err
		}
		total += int64(len(body))
	}
	if err := errors.Join(t.Close(), z.Close()); err != nil {
		return "", ocispec.Descriptor{}, err
	}
	fi, err := f.Stat()
	if err != nil {
		return "", ocispec.Descriptor{}, err
	}
	sum := func(h interface{ Sum([]byte) []byte }) digest.Digest {
		return digest.NewDigestFromEncoded(digest.SHA256, hex.EncodeToString(h.Sum(nil)))
	}
	return sum(plain), ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: sum(compressed), Size: fi.Size()}, nil
}

func addBlob(t *tar.Writer, d digest.Digest, path string) error {
	body, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return addBytes(t, "blobs/sha256/"+d.Encoded(), body)
}

func addJSON(t *tar.Writer, mediaType string, v any) (ocispec.Descriptor, error) {
	body, err := json.Marshal(v)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	d := digest.FromBytes(body)
	return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(body))}, addBytes(t, "blobs/sha256/"+d.Encoded(), body)
}

func addBytes(t *tar.Writer, name string, body []byte) error {
	if err := t.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: int64(len(body)), Format: tar.FormatPAX}); err != nil {
		return err
	}
	_, err := t.Write(body)
	return err
}
