package image

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	digest "github.com/opencontainers/go-digest"
	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"

	"github.com/cradlevm/cradle/erofs"
)

// Options of Open. The zero value is good.
type Options struct {
	// MaxLayerBytes bounds one layer's tar (0: 64 GiB), MaxArchiveBytes all layers of one image or archive
	// together (0: 256 GiB), whatever compression hides them: beyond is ErrInvalid.
	MaxLayerBytes   int64
	MaxArchiveBytes int64
	// Downloads is how many layers are downloaded at a time, of all pulls together (0: 3).
	Downloads int
	// Stall is how long a download may bring nothing before it is tried again (0: 60 s).
	Stall time.Duration
	// Keychain finds credentials when PullOptions has none (nil: docker's config and credential helpers).
	Keychain authn.Keychain
	// Transport carries the requests to registries (nil: like http.DefaultTransport).
	Transport http.RoundTripper
}

func (o Options) withDefaults() Options {
	if o.MaxLayerBytes <= 0 {
		o.MaxLayerBytes = 64 << 30
	}
	if o.MaxArchiveBytes <= 0 {
		o.MaxArchiveBytes = 256 << 30
	}
	if o.Downloads <= 0 {
		o.Downloads = 3
	}
	if o.Stall <= 0 {
		o.Stall = 60 * time.Second
	}
	if o.Keychain == nil {
		o.Keychain = authn.DefaultKeychain
	}
	if o.Transport == nil {
		o.Transport = defaultTransport()
	}
	return o
}

// Local is the Store in a directory.
type Local struct {
	dir     string
	o       Options
	db      *bolt.DB
	fromTar func(*os.File, io.Reader, erofs.Options) (erofs.Info, error)
	openTar func(io.ReaderAt) (*io.SectionReader, error)

	chunks    chunkPool
	layers    layerSet
	flights   flightGroup
	downloads chan struct{} // a token for each download

	// gc is held while images come or go: by commit, Remove, Prune and the end of a hold. It makes "the database
	// no longer needs this file" and "the file is gone" one step for everybody else.
	gc sync.Mutex
	// borrowed are the ids of the images that each owner has borrowed; guarded by gc.
	borrowed map[string][]string
}

var _ Store = (*Local)(nil)

// Open opens the store in dir, making it if there is none, and clears away what an interrupted process left: it is
// the only one to use dir until Close.
func Open(dir string, o Options) (*Local, error) {
	s := &Local{dir: dir, o: o.withDefaults(), borrowed: map[string][]string{}, fromTar: erofs.FromTar, openTar: erofs.Tar}
	s.downloads = make(chan struct{}, s.o.Downloads)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open image store: %w", err)
	}
	db, err := bolt.Open(filepath.Join(dir, "db"), 0o600, &bolt.Options{Timeout: time.Second, FreelistType: bolt.FreelistMapType})
	if errors.Is(err, berrors.ErrTimeout) {
		return nil, fmt.Errorf("image store %s is in use by another process", dir)
	}
	if err != nil {
		return nil, fmt.Errorf("open image store %s: %w", dir, err)
	}
	s.db = db
	if err := s.recover(); err != nil {
		db.Close()
		return nil, fmt.Errorf("open image store %s: %w", dir, err)
	}
	return s, nil
}

// Close ends the use of the store; nothing else may be running.
func (s *Local) Close() error { return s.db.Close() }

func (s *Local) tmp() string       { return filepath.Join(s.dir, "tmp") }
func (s *Local) layersDir() string { return filepath.Join(s.dir, "layers", "sha256") }
func (s *Local) blobsDir() string  { return filepath.Join(s.dir, "blobs", "sha256") }

func (s *Local) layerPath(diffID digest.Digest) string {
	return filepath.Join(s.layersDir(), diffID.Encoded()+".erofs")
}

// plainPath is where Plain keeps a layer's other form.
func (s *Local) plainPath(diffID digest.Digest) string {
	return filepath.Join(s.layersDir(), diffID.Encoded()+".full.erofs")
}

func (s *Local) blobPath(d digest.Digest) string {
	return filepath.Join(s.blobsDir(), d.Encoded())
}
