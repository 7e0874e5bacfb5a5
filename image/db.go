package image

import (
	"encoding/json"
	"fmt"
	"strconv"

	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"
)

// schema is the version of what is in the database. A store of a newer one is refused.
const schema = 1

// The buckets. What a layer is needed by is not stored but counted, in the transaction that asks: a count that is
// stored can drift.
const (
	bucketMeta   = "meta"   // "schema" → decimal
	bucketImages = "images" // id → imageRow
	bucketLayers = "layers" // diff id → layerRow; there is a row exactly while an image has the layer
	bucketRefs   = "refs"   // "docker.io/library/redis:latest" or "docker.io/library/redis@sha256:…" → id
	bucketHolds  = "holds"  // id NUL owner → nothing
)

// imageRow is an image as stored; the rest of Image is in its config.
type imageRow struct {
	Manifest ocispec.Descriptor `json:"manifest"`
	Layers   []digest.Digest    `json:"layers"` // diff ids, lowest first
	// Doomed says that the image was removed by force while held; it goes with its last hold.
	Doomed bool `json:"doomed,omitempty"`
}

// layerRow is a layer as stored.
type layerRow struct {
	Size  int64           `json:"size"`  // of the tar
	Image int64           `json:"image"` // of the erofs image
	Blobs []digest.Digest `json:"blobs"` // compressed forms it was seen in
}

// initSchema makes the buckets of a new database and refuses one that is too new.
func initSchema(tx *bolt.Tx) error {
	for _, name := range []string{bucketMeta, bucketImages, bucketLayers, bucketRefs, bucketHolds} {
		if _, err := tx.CreateBucketIfNotExists([]byte(name)); err != nil {
			return err
		}
	}
	meta := tx.Bucket([]byte(bucketMeta))
	v := meta.Get([]byte("schema"))
	if v == nil {
		return meta.Put([]byte("schema"), []byte(strconv.Itoa(schema)))
	}
	n, err := strconv.Atoi(string(v))
	if err != nil {
		return fmt.Errorf("database has the unreadable schema %q", v)
	}
	if n > schema {
		return fmt.Errorf("written by a newer cradle (schema %d, this one knows %d)", n, schema)
	}
	return nil
}

func putJSON(tx *bolt.Tx, bucket, key string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return tx.Bucket([]byte(bucket)).Put([]byte(key), b)
}

func getJSON(tx *bolt.Tx, bucket, key string, v any) (bool, error) {
	b := tx.Bucket([]byte(bucket)).Get([]byte(key))
	if b == nil {
		return false, nil
	}
	if err := json.Unmarshal(b, v); err != nil {
		return false, fmt.Errorf("database, %s %s: %w", bucket, key, err)
	}
	return true, nil
}

func remove(tx *bolt.Tx, bucket, key string) error {
	return tx.Bucket([]byte(bucket)).Delete([]byte(key))
}

// eachImage calls fn for every image, in the order of ids.
func eachImage(tx *bolt.Tx, fn func(id string, row imageRow) error) error {
	return tx.Bucket([]byte(bucketImages)).ForEach(func(k, v []byte) error {
		var row imageRow
		if err := json.Unmarshal(v, &row); err != nil {
			return fmt.Errorf("database, image %s: %w", k, err)
		}
		return fn(string(k), row)
	})
}

// refsByImage returns the references of every image, in canonical form and sorted.
func refsByImage(tx *bolt.Tx) map[string][]string {
	refs := map[string][]string{}
	_ = tx.Bucket([]byte(bucketRefs)).ForEach(func(k, v []byte) error {
		refs[string(v)] = append(refs[string(v)], string(k))
		return nil
	})
	return refs
}
