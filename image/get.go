package image

import (
	"encoding/json"
	"fmt"
	"os"
	"sort"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	digest "github.com/opencontainers/go-digest"
	bolt "go.etcd.io/bbolt"
)

// Get implements Store.
func (s *Local) Get(ref string) (Image, error) {
	var img Image
	err := s.db.View(func(tx *bolt.Tx) error {
		id, _, err := lookup(tx, ref)
		if err != nil {
			return err
		}
		img, err = s.image(tx, id, refsByImage(tx)[id])
		return err
	})
	return img, err
}

// List implements Store.
func (s *Local) List() ([]Image, error) {
	var list []Image
	err := s.db.View(func(tx *bolt.Tx) error {
		refs := refsByImage(tx)
		return eachImage(tx, func(id string, _ imageRow) error {
			img, err := s.image(tx, id, refs[id])
			if err == nil {
				list = append(list, img)
			}
			return err
		})
	})
	sort.SliceStable(list, func(i, j int) bool { return list[i].Created.After(list[j].Created) })
	return list, err
}

// image puts together what the store knows of an image. The transaction keeps the image's rows; its config can only
// vanish beneath it in the moment of a removal, and then the answer is that there is no such image.
func (s *Local) image(tx *bolt.Tx, id string, refs []string) (Image, error) {
	var row imageRow
	ok, err := getJSON(tx, bucketImages, id, &row)
	if err != nil {
		return Image{}, err
	}
	if !ok {
		return Image{}, noSuchImage(id)
	}
	raw, err := os.ReadFile(s.blobPath(digest.Digest(id)))
	if os.IsNotExist(err) {
		return Image{}, noSuchImage(id)
	}
	if err != nil {
		return Image{}, err
	}
	img := Image{ID: id, Descriptor: row.Manifest}
	if err := json.Unmarshal(raw, &img.Config); err != nil {
		return Image{}, fmt.Errorf("config of image %s: %w", id, err)
	}
	if img.Config.Created != nil {
		img.Created = *img.Config.Created
	}
	img.RepoTags, img.RepoDigests = splitRefs(refs)
	for _, d := range row.Layers {
		var lr layerRow
		if ok, err := getJSON(tx, bucketLayers, d.String(), &lr); err != nil || !ok {
			return Image{}, fmt.Errorf("database lacks layer %s of image %s: %w", d, id, err)
		}
		img.Layers = append(img.Layers, Layer{DiffID: d.String(), Path: s.layerPath(d), Size: lr.Size})
		img.Size += lr.Size
	}
	return img, nil
}

// parseConfig reads an image's config and checks what the store relies on.
func parseConfig(raw []byte) (dockerspec.DockerOCIImage, error) {
	var c dockerspec.DockerOCIImage
	if err := json.Unmarshal(raw, &c); err != nil {
		return c, faultf(ErrInvalid, "image config is not valid JSON: %w", err)
	}
	if t := c.RootFS.Type; t != "" && t != "layers" {
		return c, faultf(ErrInvalid, "image config has a root filesystem of type %s, not layers", quote(t))
	}
	if c.OS != "" && c.OS != "linux" {
		return c, faultf(ErrInvalid, "image operating system %s cannot be used on this platform", quote(c.OS))
	}
	// overlayfs takes 500; more is no image anybody could run.
	if n := len(c.RootFS.DiffIDs); n > maxLayers {
		return c, faultf(ErrInvalid, "image has %d layers, more than %d", n, maxLayers)
	}
	for _, d := range c.RootFS.DiffIDs {
		if err := sha256Digest(d); err != nil {
			return c, err
		}
	}
	return c, nil
}

const (
	maxLayers   = 500
	maxDocument = 8 << 20 // bytes of a manifest or config
)
