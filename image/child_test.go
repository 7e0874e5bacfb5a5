package image

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"testing"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cradlevm/cradle/image/imagetest"
)

func TestCommit(t *testing.T) {
	s, err := Open(t.TempDir(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	parent, err := s.Import(t.Context(), bytes.NewReader(imagetest.Tar(imagetest.File{Name: "a", Body: []byte("1")})), "base", dockerspec.DockerOCIImage{})
	if err != nil {
		t.Fatal(err)
	}
	config := dockerspec.DockerOCIImage{}
	config.History = []ocispec.History{{Comment: "why"}}
	child, err := s.Commit(t.Context(), parent, bytes.NewReader(imagetest.Tar(imagetest.File{Name: "b", Body: []byte("2")})), "mine:1", config)
	if err != nil {
		t.Fatal(err)
	}
	if len(child.Layers) != 2 || child.Layers[0].DiffID != parent.Layers[0].DiffID || len(child.Config.History) != 2 ||
		child.Config.History[1].Comment != "why" || len(child.RepoTags) != 1 || child.RepoTags[0] != "mine:1" {
		t.Errorf("%+v", child)
	}
	// Nothing changed: a step without a layer.
	same, err := s.Commit(t.Context(), child, bytes.NewReader(imagetest.Tar()), "", config)
	if err != nil || len(same.Layers) != 2 || !same.Config.History[2].EmptyLayer {
		t.Errorf("%+v %v", same, err)
	}
	if _, err := s.Commit(t.Context(), child, bytes.NewReader(imagetest.Tar()), "UPPER", config); !errors.Is(err, ErrBadName) {
		t.Errorf("a bad name: %v", err)
	}
	if _, err := s.Commit(t.Context(), child, bytes.NewReader([]byte("no tar")), "", config); !errors.Is(err, ErrInvalid) {
		t.Errorf("a broken layer: %v", err)
	}
	// The parent may go; what the child has of it stays.
	if _, _, err := s.Remove("base", true); err != nil {
		t.Fatal(err)
	}
	if err := s.Save(t.Context(), []string{"mine:1"}, io.Discard); err != nil {
		t.Errorf("save without the parent: %v", err)
	}
	parent.Layers = []Layer{{DiffID: "sha256:" + "00000000000000000000000000000000000000000000000000000000000000aa"}}
	if _, err := s.Commit(t.Context(), parent, bytes.NewReader(imagetest.Tar()), "", config); !errors.Is(err, ErrNotFound) {
		t.Errorf("without its parent: %v", err)
	}
}

func TestDecompress(t *testing.T) {
	plainTar := imagetest.Tar(imagetest.File{Name: "a", Body: []byte("1")})
	var z bytes.Buffer
	w := gzip.NewWriter(&z)
	_, _ = w.Write(plainTar)
	_ = w.Close()
	for _, in := range [][]byte{plainTar, z.Bytes()} {
		r, err := Decompress(bytes.NewReader(in))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, plainTar) {
			t.Errorf("%d bytes, %v", len(got), err)
		}
		_ = r.Close()
	}
	if _, err := Decompress(bytes.NewReader([]byte("BZh9"))); !errors.Is(err, ErrInvalid) {
		t.Errorf("bzip2: %v", err)
	}
}
