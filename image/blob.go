package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// blobTries is how often in a row a download may fail without having brought a byte.
const blobTries = 3

// errSilent is why a connection was given up that brought nothing for too long.
var errSilent = errors.New("the registry went silent")

// blobReader reads a blob over as many connections as it takes, going on where one broke off. It ends exactly at the
// descriptor's size: a blob that is shorter or longer is ErrInvalid.
type blobReader struct {
	ctx    context.Context
	ss     *session
	desc   ocispec.Descriptor
	off    int64
	tries  int // since the last byte
	body   io.ReadCloser
	cancel context.CancelFunc // of the current connection
	timer  *time.Timer        // ends a connection that brings nothing
}

func (ss *session) blob(ctx context.Context, desc ocispec.Descriptor) *blobReader {
	return &blobReader{ctx: ctx, ss: ss, desc: desc}
}

func (b *blobReader) Read(p []byte) (int, error) {
	for {
		if b.body == nil {
			if err := b.open(); err != nil {
				return 0, err
			}
		}
		b.timer.Reset(b.ss.stall)
		n, err := b.body.Read(p)
		b.timer.Stop()
		b.off += int64(n)
		if b.off > b.desc.Size {
			return 0, faultf(ErrInvalid, "blob %s is longer than its %d bytes", b.desc.Digest, b.desc.Size)
		}
		if n > 0 {
			b.tries = 0
		}
		if err == io.EOF && b.off == b.desc.Size {
			return n, io.EOF
		}
		if err != nil {
			b.Close()
			if b.ctx.Err() != nil {
				return n, b.ctx.Err()
			}
			if b.tries++; b.tries >= blobTries {
				return n, b.giveUp(err)
			}
		}
		if n > 0 {
			return n, nil
		}
	}
}

func (b *blobReader) giveUp(err error) error {
	if errors.Is(err, context.Canceled) {
		err = errSilent
	}
	if err == io.EOF {
		return faultf(ErrInvalid, "blob %s has %d bytes instead of %d", b.desc.Digest, b.off, b.desc.Size)
	}
	return fmt.Errorf("download of %s broke off after %d of %d bytes: %w", b.desc.Digest, b.off, b.desc.Size, err)
}

// open asks for what is missing. A refusal to open is final: the session has tried again where that can help.
func (b *blobReader) open() error {
	if b.tries > 0 {
		select {
		case <-time.After(time.Duration(b.tries) * 200 * time.Millisecond):
		case <-b.ctx.Done():
			return b.ctx.Err()
		}
	}
	var header http.Header
	if b.off > 0 {
		header = http.Header{"Range": {fmt.Sprintf("bytes=%d-%d", b.off, b.desc.Size-1)}}
	}
	ctx, cancel := context.WithCancel(b.ctx)
	resp, err := b.ss.get(ctx, "blobs/"+b.desc.Digest.String(), header)
	if err != nil {
		cancel()
		if b.ctx.Err() == nil && errors.Is(err, context.Canceled) {
			err = errSilent
		}
		return err
	}
	b.body, b.cancel = resp.Body, cancel
	b.timer = time.AfterFunc(b.ss.stall, cancel)
	if b.off > 0 && resp.StatusCode != http.StatusPartialContent {
		// The registry starts over. What is skipped is not checked again here: the digest of the whole tells.
		if _, err := io.CopyN(io.Discard, b.body, b.off); err != nil {
			return b.giveUp(err)
		}
	}
	return nil
}

// Close ends the current connection; a later Read would open another.
func (b *blobReader) Close() {
	if b.body != nil {
		b.timer.Stop()
		b.cancel()
		b.body.Close()
		b.body = nil
	}
}
