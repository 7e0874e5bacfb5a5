package image

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"path"
	"strings"

	digest "github.com/opencontainers/go-digest"
)

const (
	maxArchiveDocuments = 64 << 20 // bytes of all manifests, configs and the like of one archive
	maxArchiveNames     = 1 << 20  // entries of one archive
	maxLinkHops         = 40
)

// archive is what one pass over an image archive has found: layers are in the store by then, documents in memory.
// Names mean something within the archive only; no name of an archive ever reaches the file system.
type archive struct {
	s        *Local
	lease    *lease
	report   func(Status)
	docs     map[string][]byte
	layers   map[string]archiveLayer
	links    map[string]string // name → the name it stands for
	docBytes int64
}

// archiveLayer is an entry that looked like a layer. If it is none that is an error only once an image wants it.
type archiveLayer struct {
	diffID digest.Digest
	blob   digest.Digest
	size   int64 // of the entry
	err    error
}

// readArchive reads r to its end. It returns early when ctx ends, even while r blocks: then r may still be read.
func (s *Local) readArchive(ctx context.Context, r io.Reader, l *lease, report func(Status)) (*archive, error) {
	a := &archive{
		s: s, lease: l, report: report,
		docs: map[string][]byte{}, layers: map[string]archiveLayer{}, links: map[string]string{},
	}
	over := faultf(ErrInvalid, "archive is larger than the limit of %d bytes", s.o.MaxArchiveBytes)
	outer := newRelay(&s.chunks, ctxReader{ctx, r}, 1, s.o.MaxArchiveBytes, over)
	defer context.AfterFunc(ctx, outer.stop)()
	err := a.unpack(ctx, outer.taps[0], over)
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err != nil {
		outer.stop()
		<-outer.done
		if outer.err != nil && outer.err != errStopped {
			err = outer.err // r's own error, not what it looked like after decompression
		}
	}
	return a, err
}

// unpack takes the archive's own compression off, on a goroutine of its own.
func (a *archive) unpack(ctx context.Context, r io.Reader, over error) error {
	head, r, err := peek(r)
	if err != nil {
		return err
	}
	kind, err := codecOf(head)
	if err != nil {
		return err
	}
	if kind == plain {
		return a.readTar(ctx, r)
	}
	z := &lazyDecompressor{codec: kind, from: r}
	inner := newRelay(&a.s.chunks, z, 1, a.s.o.MaxArchiveBytes, over)
	defer func() {
		inner.stop()
		<-inner.done
		z.Close()
	}()
	return a.readTar(ctx, inner.taps[0])
}

func (a *archive) readTar(ctx context.Context, r io.Reader) error {
	tr := tar.NewReader(r)
	for n := 0; ; n++ {
		hdr, err := tr.Next()
		if err == io.EOF {
			// What follows the end of the tar is nothing, but a checksum at the end of the stream may be wrong.
			if _, err = io.Copy(io.Discard, r); err == nil {
				return nil
			}
		}
		if err == nil && n >= maxArchiveNames {
			err = faultf(ErrInvalid, "archive has more than %d entries", maxArchiveNames)
		}
		if err == nil {
			err = a.entry(ctx, hdr, tr)
		}
		if err != nil {
			return a.readError(err)
		}
	}
}

// readError puts the ways in which an archive can be broken in words.
func (a *archive) readError(err error) error {
	switch {
	case errors.Is(err, ErrInvalid), errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	case errors.Is(err, io.ErrUnexpectedEOF):
		return faultf(ErrInvalid, "archive is truncated: %w", err)
	case errors.Is(err, tar.ErrHeader):
		return faultf(ErrInvalid, "not an image archive: %w", err)
	case errors.Is(err, errDecompress):
		return faultf(ErrInvalid, "archive is damaged: %w", err)
	}
	return err
}

// cleanName is the one spelling of an entry's name.
func cleanName(name string) (string, error) {
	clean := path.Clean(name)
	if name == "" || path.IsAbs(name) || clean == ".." || strings.HasPrefix(clean, "../") || strings.Contains(name, "\x00") {
		return "", faultf(ErrInvalid, "archive has an entry of the name %s, outside of it", quote(name))
	}
	return clean, nil
}

func (a *archive) entry(ctx context.Context, hdr *tar.Header, r io.Reader) error {
	name, err := cleanName(hdr.Name)
	if err != nil {
		return err
	}
	switch hdr.Typeflag {
	case tar.TypeReg:
		a.forget(name)
		return a.file(ctx, name, hdr.Size, r)
	case tar.TypeSymlink, tar.TypeLink:
		target := hdr.Linkname
		if hdr.Typeflag == tar.TypeSymlink && !path.IsAbs(target) {
			target = path.Join(path.Dir(name), target)
		}
		if target, err = cleanName(target); err != nil {
			return faultf(ErrInvalid, "archive has a link %s to %s, outside of it", quote(name), quote(hdr.Linkname))
		}
		a.forget(name)
		a.links[name] = target
	}
	return nil
}

// forget makes room for a later entry of the same name, which is the one that counts.
func (a *archive) forget(name string) {
	a.docBytes -= int64(len(a.docs[name]))
	delete(a.docs, name)
	delete(a.layers, name)
	delete(a.links, name)
}

// file takes an entry as a layer or as a document, by its first bytes: manifests, which tell, may come last.
func (a *archive) file(ctx context.Context, name string, size int64, r io.Reader) error {
	head, r, err := peek(r)
	if err != nil {
		return err
	}
	kind, err := codecOf(head)
	switch {
	case err != nil:
		a.layers[name] = archiveLayer{size: size, err: err}
		return nil
	case kind != plain || isTar(head):
		return a.layer(ctx, name, size, r)
	case size > maxDocument:
		a.layers[name] = archiveLayer{size: size, err: faultf(ErrInvalid, "neither a tar nor a document of at most %d bytes", maxDocument)}
		return nil
	}
	raw, err := readDocument(r, quote(name))
	if err != nil {
		return err
	}
	if a.docBytes += int64(len(raw)); a.docBytes > maxArchiveDocuments {
		return faultf(ErrInvalid, "archive has more than %d bytes of documents", maxArchiveDocuments)
	}
	if want, ok := blobName(name); ok && digest.FromBytes(raw) != want {
		return faultf(ErrInvalid, "archive entry %s has the digest %s", quote(name), digest.FromBytes(raw))
	}
	a.docs[name] = raw
	return nil
}

// blobName is the digest that an entry's name promises, in an OCI layout.
func blobName(name string) (digest.Digest, bool) {
	hex, ok := strings.CutPrefix(name, "blobs/sha256/")
	if _, whole := isID(hex); !ok || !whole || strings.Contains(hex, ":") {
		return "", false
	}
	return digest.NewDigestFromEncoded(digest.SHA256, hex), true
}

// layer brings a layer into the store. One whose name promises a digest that is there already is only checked, and
// one that another load is bringing is waited for.
func (a *archive) layer(ctx context.Context, name string, size int64, r io.Reader) error {
	id := shortID(strings.TrimPrefix(name, "blobs/sha256/"))
	src := &counter{r: r, report: a.report, st: Status{ID: id, Status: "Loading layer", Total: size}}
	want, promised := blobName(name)
	for promised {
		if diffID, ok := a.lease.pinBlob(want); ok {
			return a.check(name, want, diffID, size, src)
		}
		end, ok, err := a.s.flights.begin(ctx, want)
		if err != nil {
			return err
		}
		if ok {
			defer end()
			break
		}
	}
	c, err := a.s.convert(src, func() {})
	if errors.Is(err, ErrInvalid) {
		a.layers[name] = archiveLayer{size: size, err: err}
		return nil
	}
	if err != nil {
		return err
	}
	if promised && c.blob != want {
		a.s.drop(c)
		return faultf(ErrInvalid, "archive entry %s has the digest %s", quote(name), c.blob)
	}
	a.lease.pin(c.diffID)
	if err := a.s.install(c); err != nil {
		return err
	}
	a.layers[name] = archiveLayer{diffID: c.diffID, blob: c.blob, size: size}
	return nil
}

// check holds an entry against the digest in its name.
func (a *archive) check(name string, want, diffID digest.Digest, size int64, r io.Reader) error {
	got, err := a.s.measure(r, func() {})
	if err != nil {
		return err
	}
	if got != want {
		return faultf(ErrInvalid, "archive entry %s has the digest %s", quote(name), got)
	}
	a.layers[name] = archiveLayer{diffID: diffID, blob: want, size: size}
	return nil
}

// follow resolves links between entries.
func (a *archive) follow(name string) (string, error) {
	clean, err := cleanName(name)
	if err != nil {
		return "", err
	}
	for range maxLinkHops {
		target, ok := a.links[clean]
		if !ok {
			return clean, nil
		}
		clean = target
	}
	return "", faultf(ErrInvalid, "archive entry %s is a link that leads nowhere", quote(name))
}

// doc returns a document by name.
func (a *archive) doc(name string) ([]byte, error) {
	target, err := a.follow(name)
	if err != nil {
		return nil, err
	}
	if raw, ok := a.docs[target]; ok {
		return raw, nil
	}
	if l, ok := a.layers[target]; ok {
		if l.err != nil {
			return nil, faultf(ErrInvalid, "archive entry %s: %w", quote(name), l.err)
		}
		return nil, faultf(ErrInvalid, "archive entry %s is a layer, not a document", quote(name))
	}
	return nil, faultf(ErrInvalid, "archive lacks %s", quote(name))
}

// wantLayer returns the layer of a name, which must unpack to diffID.
func (a *archive) wantLayer(name string, diffID digest.Digest) (archiveLayer, error) {
	target, err := a.follow(name)
	if err != nil {
		return archiveLayer{}, err
	}
	l, ok := a.layers[target]
	switch {
	case !ok && a.docs[target] != nil:
		return l, faultf(ErrInvalid, "archive entry %s is not a layer", quote(name))
	case !ok:
		return l, faultf(ErrInvalid, "archive lacks the layer %s", quote(name))
	case l.err != nil:
		return l, faultf(ErrInvalid, "archive entry %s: %w", quote(name), l.err)
	case l.diffID != diffID:
		return l, faultf(ErrInvalid, "archive entry %s unpacks to %s, but the image's config says %s", quote(name), l.diffID, diffID)
	}
	return l, nil
}
