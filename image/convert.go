package image

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"time"

	digest "github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/cradlevm/cradle/erofs"
)

// converted is a layer that has become an erofs image in tmp/.
type converted struct {
	path   string
	diffID digest.Digest // of the tar
	blob   digest.Digest // of the stream as it came; the diff id when it came plain
	bytes  int64         // of the stream as it came
	info   erofs.Info
}

// convert turns one layer, a tar stream as it is or compressed, into an erofs image in tmp/, in one pass:
//
//	src → relay → hash                         the blob's digest
//	          └→ decompress → relay → hash     the diff id
//	                              └→ erofs     the image
//
// Each arrow is a goroutine's edge. When convert returns, nobody reads src any more; abort, called before convert
// waits for a blocked src, must make src's Read return. An error of src's comes back as it is, content that is not
// a layer is ErrInvalid.
func (s *Local) convert(src io.Reader, abort func()) (c converted, err error) {
	f, err := os.CreateTemp(s.tmp(), "layer-")
	if err != nil {
		return c, s.diskError("write a layer", err)
	}
	defer func() {
		f.Close()
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	p, err := s.newPipeline(src, abort)
	if err != nil {
		return c, err
	}
	c, err = p.run(func(tar io.Reader) (erofs.Info, error) {
		defer writeBack(f)()
		info, err := s.fromTar(f, tar, erofs.Options{Form: erofs.TarIndex, MaxBytes: s.o.MaxLayerBytes})
		if err != nil {
			err = s.diskError("write a layer", err)
		}
		return info, err
	})
	if err != nil {
		return c, err
	}
	c.path = f.Name()
	if err := f.Chmod(0o444); err != nil {
		return c, err
	}
	if err := f.Sync(); err != nil {
		return c, s.diskError("write a layer", err)
	}
	return c, nil
}

// drop deletes a converted layer that turned out not to be what was promised.
func (s *Local) drop(c converted) { os.Remove(c.path) }

// measure reads a stream to its end without keeping it and returns the digest of its bytes as they came.
func (s *Local) measure(src io.Reader, abort func()) (digest.Digest, error) {
	r := newRelay(&s.chunks, src, 1, s.o.MaxLayerBytes, s.tooLarge())
	h := sha256.New()
	<-r.taps[0].hashInto(h)
	if r.err != nil {
		abort()
		return "", r.err
	}
	return digest.NewDigest(digest.SHA256, h), nil
}

func (s *Local) tooLarge() error {
	return faultf(ErrInvalid, "layer is larger than the limit of %d bytes", s.o.MaxLayerBytes)
}

// pipeline is the joints of convert. unpacked and packedHash are nil for a plain stream.
type pipeline struct {
	abort      func()
	outer      *relay
	inner      *relay // the tar; outer itself when the stream is plain
	unpack     *lazyDecompressor
	packedHash hash.Hash
	tarHash    hash.Hash
	hashed     []<-chan struct{}
}

func (s *Local) newPipeline(src io.Reader, abort func()) (*pipeline, error) {
	head, src, err := peek(src)
	if err != nil {
		return nil, err
	}
	kind, err := codecOf(head)
	if err != nil {
		return nil, err
	}
	p := &pipeline{abort: abort, tarHash: sha256.New()}
	p.outer = newRelay(&s.chunks, src, 2, s.o.MaxLayerBytes, s.tooLarge())
	p.inner = p.outer
	if kind != plain {
		p.packedHash = sha256.New()
		p.hashed = append(p.hashed, p.outer.taps[1].hashInto(p.packedHash))
		p.unpack = &lazyDecompressor{codec: kind, from: p.outer.taps[0]}
		p.inner = newRelay(&s.chunks, p.unpack, 2, s.o.MaxLayerBytes, s.tooLarge())
	}
	p.hashed = append(p.hashed, p.inner.taps[1].hashInto(p.tarHash))
	return p, nil
}

// run gives the tar to write and waits until every goroutine of the pipeline has ended.
func (p *pipeline) run(write func(io.Reader) (erofs.Info, error)) (c converted, err error) {
	info, writeErr := write(p.inner.taps[0])
	var rest int64
	if writeErr == nil {
		rest, _ = io.Copy(io.Discard, p.inner.taps[0]) // so that a relay's error shows even if write missed it
	} else {
		p.inner.stop()
		p.outer.stop()
		p.abort()
	}
	<-p.inner.done
	if p.inner.err != nil {
		p.outer.stop()
	}
	<-p.outer.done
	for _, h := range p.hashed {
		<-h
	}
	if p.unpack != nil {
		p.unpack.Close()
	}
	if err := p.fault(writeErr); err != nil {
		return c, err
	}
	if rest != 0 || info.TarBytes != p.inner.n {
		return c, fmt.Errorf("erofs kept %d of %d bytes of the layer", info.TarBytes, p.inner.n)
	}
	c.info, c.bytes = info, p.outer.n
	c.diffID = digest.NewDigest(digest.SHA256, p.tarHash)
	c.blob = c.diffID
	if p.packedHash != nil {
		c.blob = digest.NewDigest(digest.SHA256, p.packedHash)
	}
	return c, nil
}

// fault picks the cause among the errors that one failure set off along the pipeline: the one farthest upstream.
func (p *pipeline) fault(writeErr error) error {
	if err := p.outer.err; err != nil && !errors.Is(err, errStopped) {
		return err
	}
	if err := p.inner.err; err != nil && !errors.Is(err, errStopped) {
		if errors.Is(err, ErrInvalid) {
			return err
		}
		return faultf(ErrInvalid, "layer is damaged: %w", err)
	}
	return writeErr
}

// writeBack has the kernel write f to disk while it grows, so that the fsync at its end finds little left to do.
// The returned function stops it.
func writeBack(f *os.File) func() {
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		t := time.NewTicker(100 * time.Millisecond)
		defer t.Stop()
		for {
			select {
			case <-quit:
				return
			case <-t.C:
				// Only a hint: a file system that does not know it loses nothing.
				_ = unix.SyncFileRange(int(f.Fd()), 0, 0, unix.SYNC_FILE_RANGE_WRITE)
			}
		}
	}()
	return func() { close(quit); <-done }
}

// writeFile stores a small file whole or not at all.
func (s *Local) writeFile(path string, content []byte) (err error) {
	f, err := os.CreateTemp(s.tmp(), "blob-")
	if err != nil {
		return s.diskError("write "+filepath.Base(path), err)
	}
	defer func() {
		f.Close()
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	if _, err = f.Write(content); err == nil {
		err = f.Chmod(0o444)
	}
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return s.diskError("write "+filepath.Base(path), err)
	}
	return nil
}

// syncDir makes the names in a directory durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// ctxReader fails as soon as its context has ended, between two reads.
type ctxReader struct {
	ctx context.Context
	r   io.Reader
}

func (c ctxReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}
