// Package image is the local store of OCI images: pull, load, import, save, tag, remove, garbage-collect.
//
// # On disk
//
// Everything lives below one directory, content-addressed and written as temporary file → fsync → rename:
//
//	layers/sha256/<diffid>.erofs   a layer as a block image (package erofs), shared by every sandbox
//	layers/sha256/<diffid>.full.erofs   the same for old kernels (Store.Plain), made when first asked for
//	blobs/sha256/<digest>          configs and manifests, as they came
//	db                             bbolt: references, images, who holds them
//	tmp/                           work in progress; emptied when the store opens
//
// An image's id is the digest of its config. A layer is named by its diff id: the digest of its uncompressed tar.
package image

import (
	"context"
	"errors"
	"io"
	"time"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Sentinels, to be found with errors.Is. Messages name the reference and are in docker's words where it has them.
var (
	ErrNotFound = errors.New("no such image")
	ErrInvalid  = errors.New("invalid image")     // corrupt, truncated or lying archive or reply
	ErrInUse    = errors.New("image is in use")   // by a container, or by more than one tag
	ErrBadName  = errors.New("invalid reference") // not a reference
	ErrDenied   = errors.New("access denied")     // by the registry
)

// Image is one image of the store. It is a value: later changes of the store do not show in it.
type Image struct {
	ID          string   // "sha256:" and 64 hex digits: the digest of the config
	RepoTags    []string // familiar form, sorted: "redis:latest"
	RepoDigests []string // "redis@sha256:…"
	Created     time.Time
	Size        int64                     // sum of the layers' uncompressed tars, bytes
	Config      dockerspec.DockerOCIImage // platform, config, rootfs, history
	Descriptor  ocispec.Descriptor        // of the manifest
	Layers      []Layer                   // lowest first
}

// Layer is one read-only layer on disk.
type Layer struct {
	DiffID string // "sha256:…" of the uncompressed tar
	Path   string // the erofs image; stays valid while the image is held
	Size   int64  // of the tar, bytes
}

// Status is one step of a transfer, in the words of docker's progress stream.
type Status struct {
	ID      string // short layer id, or empty
	Status  string // "Pulling fs layer", "Downloading", "Extracting", "Pull complete", …
	Current int64  // bytes; 0 when the status has no measure
	Total   int64
}

// PullOptions of Store.Pull.
type PullOptions struct {
	Platform      *ocispec.Platform // nil: linux on this machine's architecture
	Username      string            // with Password, or IdentityToken; empty: the daemon's docker config and its credential helpers
	Password      string
	IdentityToken string
	RegistryToken string
	PlainHTTP     bool         // also for registries that are not on loopback
	Progress      func(Status) // may be nil; called from one goroutine at a time
}

// Store is the image store as its users see it; *Local is the one implementation. The comment of each method
// names its sentinels.
type Store interface {
	// Pull fetches ref ("redis", "host:port/repo:tag", "repo@sha256:…"). Concurrent pulls share layers in
	// flight. ErrBadName, ErrNotFound, ErrDenied, ErrInvalid.
	Pull(ctx context.Context, ref string, o PullOptions) (Image, error)
	// Load reads docker-archive, OCI layout archive (plain, gzip, zstd) and stores every image in it. RepoTags of what it
	// returns are the archive's alone. ErrInvalid.
	Load(ctx context.Context, r io.Reader, progress func(Status)) ([]Image, error)
	// LoadUnnamed is Load of an archive that must be the image id's alone, and takes no name from it: what has one keeps it.
	// ErrInvalid.
	LoadUnnamed(ctx context.Context, r io.Reader, id string) (Image, error)
	// Save writes the images as one archive that is both docker-archive and OCI layout. ErrNotFound.
	Save(ctx context.Context, refs []string, w io.Writer) error
	// Push sends the image that ref names to ref's registry and returns the manifest's digest and size. Layers are sent
	// as gzip of what they were; what the registry has already is not sent. ErrBadName, ErrNotFound, ErrDenied.
	Push(ctx context.Context, ref string, o PullOptions) (manifest digest.Digest, size int64, err error)
	// Login asks the registry at server whether it takes the credentials. ErrBadName, ErrDenied.
	Login(ctx context.Context, server string, o PullOptions) error
	// Import makes an image of one layer from a root filesystem's tar (docker import). ref may be empty.
	Import(ctx context.Context, r io.Reader, ref string, config dockerspec.DockerOCIImage) (Image, error)
	// Commit makes an image of parent's layers and one more, from its tar (docker commit). config is the new image's
	// without its layers; its history is the one step that is added. ref may be empty. ErrNotFound, ErrInvalid,
	// ErrBadName.
	Commit(ctx context.Context, parent Image, layer io.Reader, ref string, config dockerspec.DockerOCIImage) (Image, error)
	// Get finds an image by reference, id, or unambiguous id prefix. ErrNotFound, ErrBadName.
	Get(ref string) (Image, error)
	// Plain returns img with layers that kernels before 6.4 mount too, which cannot mount what Get's paths lead to:
	// plain erofs images with 4,096-byte blocks. They are made when first asked for, and then go with their layers.
	// ErrNotFound when the image has been removed.
	Plain(ctx context.Context, img Image) (Image, error)
	// List returns all images, newest first.
	List() ([]Image, error)
	// Tag names the image that source finds. ErrNotFound, ErrBadName.
	Tag(source, target string) error
	// Remove untags ref and, when that was the last name (or ref is an id with at most one name, or force),
	// deletes the image and the layers nobody else needs. ErrNotFound, ErrInUse.
	Remove(ref string, force bool) (untagged, deleted []string, err error)
	// Prune deletes images that nothing holds: the untagged ones, or with all every one. It returns what it
	// deleted and the bytes of disk given back.
	Prune(all bool) (deleted []string, reclaimed int64, err error)
	// Hold keeps the image's files as long as owner (a container's id) holds it; idempotent. Holds survive
	// restarts. ErrNotFound.
	Hold(id, owner string) error
	// Borrow is Hold for an owner that whoever opens the store next knows of and borrows for again: it is not written
	// down. ErrNotFound.
	Borrow(id, owner string) error
	// Release ends all that owner holds and borrows; idempotent.
	Release(owner string) error
	// Settle deletes the images that were removed by force and that nobody holds any more, after everybody has borrowed
	// again.
	Settle() error
	// DiskUsage returns the bytes that layers take on disk.
	DiskUsage() (int64, error)
	Close() error
}
