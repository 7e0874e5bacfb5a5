// Package erofs turns a layer's tar stream into an erofs image that the Linux kernel mounts, in pure Go and in
// one pass over the stream. The format is the kernel's Documentation/filesystems/erofs.rst and fs/erofs/erofs_fs.h.
//
// # Forms
//
// TarIndex keeps the tar as it is and adds an index beside it: [superblock][tar][metadata], 512-byte blocks, the
// files' data being the tar's own bytes. It costs one sequential write and gives the tar back byte for byte
// (Image.Tar). The guest's kernel must be 6.4 or newer.
//
// Full is a plain erofs with 4,096-byte blocks for every kernel since 5.4; the tar cannot be had back.
//
// Both are reproducible: the same tar and the same options give the same bytes.
//
// # Whiteouts
//
// OCI's ".wh.NAME" becomes overlayfs's character device 0/0 called NAME, ".wh..wh..opq" the xattr
// trusted.overlay.opaque=y on its directory; neither marker file is kept. A whiteout is about lower layers only: of a
// name that this layer has too it makes the directory opaque, and does nothing to other files, in either order.
// Overlayfs does not look at an opaque xattr on a layer's root.
//
// # Names and links
//
// Entries below a symlink to a directory of the same layer land in that directory, as with containerd; a loop, and an
// entry below a file, are ErrInvalid. A hard link's target must be in the layer, before it.
//
// # What is not kept
//
// Owners' names, access and change times, global pax headers (docker ignores them too), xattrs outside user., trusted.,
// security. and the two POSIX ACLs, those that Linux refuses on the file's type, and trusted.overlay.*, which
// overlayfs would believe.
package erofs

import (
	"errors"
	"io"
	"os"
)

// ErrInvalid is what every complaint about the tar stream wraps; the message names the entry.
var ErrInvalid = errors.New("invalid layer")

// Form of an image; see the package comment.
type Form int

const (
	TarIndex Form = iota
	Full
)

// Options of FromTar. The zero value is good.
type Options struct {
	Form Form
	// MaxBytes bounds the tar stream (0: 64 GiB), MaxEntries its entries (0: 4,000,000): a layer beyond is ErrInvalid.
	MaxBytes   int64
	MaxEntries int
}

// Info tells what was written.
type Info struct {
	TarBytes   int64 // length of the tar stream, end-of-archive blocks and padding included
	ImageBytes int64 // length of the image
	Entries    int   // inodes
}

// FromTar reads a tar stream (ustar, pax, GNU; long names, sparse files, xattrs by SCHILY.xattr.) to its end and
// writes the image to dst, an empty file open for reading and writing (sparse files may be read back). It never
// touches any other file. A stream that ends between entries without the end-of-archive blocks is taken, as docker
// takes it; one that ends elsewhere is ErrInvalid. Errors of tar and dst are returned wrapped and are not ErrInvalid;
// after any error what dst holds is no image.
// A name that would leave the root ("..", absolute is taken relative) is ErrInvalid or cleaned as docker does;
// a later entry replaces an earlier one of the same name; missing parents are made (root, 0755).
func FromTar(dst *os.File, tar io.Reader, o Options) (Info, error) { return fromTar(dst, tar, o) }

// Tar returns a reader of the tar inside a TarIndex image, byte for byte what FromTar read, and its length.
// ErrInvalid when image is not a TarIndex image.
func Tar(image io.ReaderAt) (*io.SectionReader, error) { return openTar(image) }
