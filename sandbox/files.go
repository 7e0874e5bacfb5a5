package sandbox

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"path"
	"strings"
	"time"

	"github.com/cradlevm/cradle/api"
	"github.com/cradlevm/cradle/api/wire"
)

// Bounds of what a guest may say about paths, bytes.
const (
	maxPath    = 1 << 16
	maxChanges = 64 << 20 // all records together
)

// StatPath describes what is at a path of a container.
func (s *Sandbox) StatPath(ctx context.Context, r api.PathRequest) (api.PathStat, error) {
	var st api.PathStat
	if err := s.call(ctx, api.MethodStatPath, r, &st); err != nil {
		return api.PathStat{}, err
	}
	return st, checkStat(st)
}

// checkStat bounds what becomes a header of an HTTP answer.
func checkStat(st api.PathStat) error {
	if len(st.Name) > maxPath || len(st.LinkTarget) > maxPath || st.Size < 0 {
		return fmt.Errorf("agent answers nonsense: the stat of a path")
	}
	return nil
}

// Freeze makes the container's processes stand still, or go on.
func (s *Sandbox) Freeze(ctx context.Context, id string, frozen bool) error {
	return s.call(ctx, api.MethodFreeze, api.FreezeRequest{ID: id, Frozen: frozen}, nil)
}

// Update changes limits of a container.
func (s *Sandbox) Update(ctx context.Context, r api.UpdateRequest) error {
	return s.call(ctx, api.MethodUpdate, r, nil)
}

// Archive opens an archive of what is at a path. Its reader fails when the guest breaks off, and with ctx.
func (s *Sandbox) Archive(ctx context.Context, r api.PathRequest) (io.ReadCloser, api.PathStat, error) {
	var st api.PathStat
	body, err := s.read(ctx, api.MethodArchive, r, &st)
	if err != nil {
		return nil, st, err
	}
	if err := checkStat(st); err != nil {
		body.Close()
		return nil, st, err
	}
	return body, st, nil
}

// Export opens an archive of a container's root file system without what is mounted in it.
func (s *Sandbox) Export(ctx context.Context, id string) (io.ReadCloser, error) {
	return s.read(ctx, api.MethodExport, api.ProcessRef{ID: id}, nil)
}

// Layer opens a container's changes as an OCI layer.
func (s *Sandbox) Layer(ctx context.Context, id string) (io.ReadCloser, error) {
	return s.read(ctx, api.MethodLayer, api.ProcessRef{ID: id}, nil)
}

// Changes calls record with each of a container's changes: one of api's kinds and an absolute path.
func (s *Sandbox) Changes(ctx context.Context, id string, record func(kind byte, p string)) error {
	body, err := s.read(ctx, api.MethodChanges, api.ProcessRef{ID: id}, nil)
	if err != nil {
		return err
	}
	defer body.Close()
	lines := bufio.NewReaderSize(io.LimitReader(body, maxChanges), maxPath)
	for total := 0; ; {
		line, err := lines.ReadSlice(0)
		total += len(line)
		if err == io.EOF && len(line) == 0 && total < maxChanges {
			return nil
		}
		if err == io.EOF || err == bufio.ErrBufferFull {
			return fmt.Errorf("agent answers nonsense: changes without end")
		}
		if err != nil {
			return s.classify(err)
		}
		kind, p := line[0], string(line[min(1, len(line)):len(line)-1])
		if !strings.ContainsRune("CAD", rune(kind)) || !path.IsAbs(p) {
			return fmt.Errorf("agent answers nonsense: a change of kind %q", kind)
		}
		record(kind, p)
	}
}

// read opens what a method sends.
func (s *Sandbox) read(ctx context.Context, method string, params, result any) (io.ReadCloser, error) {
	stream, _, err := s.stream(ctx, method, params, result)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { stream.SetDeadline(time.Unix(1, 0)) })
	return &body{s: s, ctx: ctx, stream: stream, chunks: wire.NewChunkReader(stream), stop: stop}, nil
}

// body is an archive on its way.
type body struct {
	s      *Sandbox
	ctx    context.Context
	stream *wire.Stream
	chunks *wire.ChunkReader
	stop   func() bool
}

func (b *body) Read(p []byte) (int, error) {
	n, err := b.chunks.Read(p)
	if err != nil && err != io.EOF {
		if b.ctx.Err() != nil {
			err = context.Cause(b.ctx)
		}
		err = b.s.classify(err)
	}
	return n, err
}

func (b *body) Close() error {
	b.stop()
	b.stream.SetDeadline(time.Unix(1, 0)) // nobody waits for a guest that sends on
	return b.stream.Close()
}

// Extract unpacks the archive that r brings into a directory of a container. It returns when the guest says how it
// went, which may be before r has ended: then r is not read any more, but a Read that waits goes on waiting.
func (s *Sandbox) Extract(ctx context.Context, e api.ExtractRequest, r io.Reader) error {
	stream, _, err := s.stream(ctx, api.MethodExtract, e, nil)
	if err != nil {
		return err
	}
	defer stream.Close()
	defer stream.SetDeadline(time.Unix(1, 0)) // ends the sending, and no Close waits
	defer context.AfterFunc(ctx, func() { stream.SetDeadline(time.Unix(1, 0)) })()
	failed := make(chan error, 1)
	go func() {
		w := wire.NewChunkWriter(stream)
		in := &failing{r: r}
		_, err := io.Copy(w, in)
		failed <- in.err
		if err == nil {
			w.End(nil)
		} else {
			w.End(api.Errorf(api.CodeInvalid, "read the archive: %w", err))
		}
	}()
	_, err = io.Copy(io.Discard, wire.NewChunkReader(stream))
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	}
	select {
	case cause := <-failed: // the guest only heard of it
		if cause != nil {
			return cause
		}
	default:
	}
	return s.classify(err)
}

// failing remembers why reading ended, when that was not the end.
type failing struct {
	r   io.Reader
	err error
}

func (f *failing) Read(p []byte) (int, error) {
	n, err := f.r.Read(p)
	if err != nil && err != io.EOF {
		f.err = err
	}
	return n, err
}
