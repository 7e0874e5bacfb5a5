package main

import (
	"archive/tar"
	"bytes"
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
	"syscall"
	"time"

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
func load(ctx context.Context, e env) ([]row, error) {
	archive := filepath.Join(e.dir, "big.tar")
	layers, err := bigImage(archive, e.dir)
	if err != nil {
		return nil, err
	}
	d, err := startDaemon(ctx, e, "load")
	if err != nil {
		return nil, err
	}
	defer d.stop()
	var ours sample
	for range min(e.runs, loadRuns) {
		s, err := timed(1, func() error { return d.cradle(ctx, "load", "-q", "-i", archive) })
		if err != nil {
			return nil, err
		}
		ours = append(ours, s...)
		if err := d.cradle(ctx, "rmi", "-f", "big:latest"); err != nil {
			return nil, err
		}
	}
	plain, err := timed(len(ours), func() error { return gunzipAndHash(ctx, layers) })
	if err != nil {
		return nil, err
	}
	rows := []row{{name: "load 450 MB image", ours: ours, peer: "gunzip | sha256sum", base: plain, goal: 1.2}}
	if e.peers == "" {
		return rows, nil
	}
	imported, err := ctrImport(ctx, e, archive, len(ours))
	if err != nil {
		return nil, err
	}
	return append(rows, row{name: "load 450 MB image", ours: ours, peer: "ctr images import", base: imported, goal: 0.5}), nil
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

// ctrImport measures `ctr images import`, which unpacks too, each time into an empty containerd.
func ctrImport(ctx context.Context, e env, archive string, n int) (sample, error) {
	var s sample
	for i := range n {
		dir := filepath.Join(e.dir, fmt.Sprintf("containerd%d", i))
		took, err := oneImport(ctx, e, archive, dir)
		if err != nil {
			return nil, err
		}
		s = append(s, took)
	}
	return s, nil
}

func oneImport(ctx context.Context, e env, archive, dir string) (took time.Duration, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return 0, err
	}
	config := filepath.Join(dir, "config.toml")
	text := fmt.Sprintf("version = 3\nroot = %q\nstate = %q\ndisabled_plugins = ['io.containerd.cri.v1.images', 'io.containerd.cri.v1.runtime', 'io.containerd.grpc.v1.cri', 'io.containerd.nri.v1.nri']\n[grpc]\naddress = %q\n[ttrpc]\naddress = %q\n",
		dir+"/root", dir+"/state", dir+"/c.sock", dir+"/t.sock")
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return 0, err
	}
	var log bytes.Buffer
	daemon := exec.Command(filepath.Join(e.peers, "containerd"), "-c", config)
	daemon.Stdout, daemon.Stderr = &log, &log
	daemon.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := daemon.Start(); err != nil {
		return 0, err
	}
	defer func() {
		err = errors.Join(err, daemon.Process.Signal(syscall.SIGTERM))
		daemon.Wait() // its exit status after a signal says nothing
		err = errors.Join(err, os.RemoveAll(dir))
	}()
	ctr := func(args ...string) error {
		out, err := exec.CommandContext(ctx, filepath.Join(e.peers, "ctr"), append([]string{"-a", dir + "/c.sock", "-n", "bench"}, args...)...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("ctr %v: %w: %s; containerd: %s", args, err, out, tail(log.String(), 2000))
		}
		return nil
	}
	deadline := time.Now().Add(30 * time.Second)
	for ctr("version") != nil { // containerd tells nobody when it is ready
		if time.Now().After(deadline) {
			return 0, fmt.Errorf("containerd does not come up: %s", tail(log.String(), 2000))
		}
		time.Sleep(50 * time.Millisecond)
	}
	began := time.Now()
	err = ctr("images", "import", archive)
	return time.Since(began), err
}

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
