package sandbox

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/cradlevm/cradle/api"
	"github.com/cradlevm/cradle/api/wire"
)

// Create makes a container from disks that are already there.
func (s *Sandbox) Create(ctx context.Context, r api.CreateRequest) error {
	return s.call(ctx, api.MethodCreate, r, nil)
}

// StartContainer runs a created container's first process.
func (s *Sandbox) StartContainer(ctx context.Context, id string) error {
	return s.call(ctx, api.MethodStart, api.ProcessRef{ID: id}, nil)
}

// maxPID is the most that a process id can be on Linux.
const maxPID = 1 << 22

// Exec starts another process in a running container and returns its process id, which is the guest's. A process id that
// cannot be is ErrNonsense.
func (s *Sandbox) Exec(ctx context.Context, r api.ExecRequest) (pid int, err error) {
	var started api.StartResult
	if err := s.call(ctx, api.MethodExec, r, &started); err != nil {
		return 0, err
	}
	if started.PID < 1 || started.PID > maxPID {
		return 0, fmt.Errorf("%w: process id %d", ErrNonsense, started.PID)
	}
	return started.PID, nil
}

// Wait returns how the process ended, once it has. What the guest says is checked: a code outside 0..255 is
// ErrNonsense.
func (s *Sandbox) Wait(ctx context.Context, p api.ProcessRef) (api.ExitStatus, error) {
	var st api.ExitStatus
	if err := s.call(ctx, api.MethodWait, p, &st); err != nil {
		return api.ExitStatus{}, err
	}
	if st.Code < 0 || st.Code > 255 {
		return api.ExitStatus{}, fmt.Errorf("%w: exit code %d", ErrNonsense, st.Code)
	}
	return st, nil
}

// Known returns the id, in the guest, of a process that runs or has ended: 0 from an agent of an earlier version, and from
// one that talks nonsense. api.CodeNotFound when it never was or has been deleted.
func (s *Sandbox) Known(ctx context.Context, p api.ProcessRef) (pid int, err error) {
	var r api.StartResult
	err = s.call(ctx, api.MethodSignal, api.SignalRequest{ProcessRef: p}, &r)
	var answered *api.Error
	switch {
	case errors.As(err, new(*json.SyntaxError)), errors.As(err, new(*json.UnmarshalTypeError)), err == nil && r.PID < 0:
		return 0, nil
	case errors.As(err, &answered) && answered.Code == api.CodeFailedPrecondition: // an earlier agent's word for ended
		return 0, nil
	}
	return r.PID, err
}

// Signal sends a signal to a process, or with all to every process of its container. api.CodeFailedPrecondition when it
// has ended, api.CodeNotFound when it never was or has been deleted.
func (s *Sandbox) Signal(ctx context.Context, p api.ProcessRef, signal int, all bool) error {
	return s.call(ctx, api.MethodSignal, api.SignalRequest{ProcessRef: p, Signal: signal, All: all}, nil)
}

// Resize sets the size of a process's terminal.
func (s *Sandbox) Resize(ctx context.Context, p api.ProcessRef, width, height uint16) error {
	return s.call(ctx, api.MethodResize, api.ResizeRequest{ProcessRef: p, Width: width, Height: height}, nil)
}

// Delete kills and forgets a container (and flushes its writable disk) or an exec.
func (s *Sandbox) Delete(ctx context.Context, p api.ProcessRef) error {
	return s.call(ctx, api.MethodDelete, p, nil)
}

// Processes lists a container's processes.
func (s *Sandbox) Processes(ctx context.Context, id string) ([]api.Process, error) {
	var r api.ProcessesResult
	err := s.call(ctx, api.MethodProcesses, api.ProcessRef{ID: id}, &r)
	return r.Processes, err
}

// Stats returns the guest's account of a container.
func (s *Sandbox) Stats(ctx context.Context, id string) (r api.StatsResult, err error) {
	err = s.call(ctx, api.MethodStats, api.ProcessRef{ID: id}, &r)
	return r, err
}

// Stdin opens a process's standard input; closing it gives the process end-of-file. ctx bounds the opening.
func (s *Sandbox) Stdin(ctx context.Context, p api.ProcessRef) (io.WriteCloser, error) {
	client, err := s.session(ctx)
	if err != nil {
		return nil, err
	}
	stream, err := client.Stream(ctx, api.MethodStdin, p, nil)
	if err != nil {
		return nil, s.classify(err)
	}
	return stream, nil
}

// Output opens a process's output from an offset of its journal. ctx bounds the opening.
func (s *Sandbox) Output(ctx context.Context, p api.ProcessRef, offset uint64) (*Output, error) {
	return s.output(ctx, api.OutputRequest{ProcessRef: p, Offset: offset})
}

// OutputLeft is Output that, where the journal has forgotten what lies at the offset, begins with the oldest record
// that is left: Offset says which.
func (s *Sandbox) OutputLeft(ctx context.Context, p api.ProcessRef, offset uint64) (*Output, error) {
	return s.output(ctx, api.OutputRequest{ProcessRef: p, Offset: offset, Left: true})
}

func (s *Sandbox) output(ctx context.Context, r api.OutputRequest) (*Output, error) {
	client, err := s.session(ctx)
	if err != nil {
		return nil, err
	}
	result := api.OutputResult{Offset: r.Offset}
	stream, err := client.Stream(ctx, api.MethodOutput, r, &result)
	if err != nil {
		return nil, s.classify(err)
	}
	if result.Offset < r.Offset {
		go stream.Close()
		return nil, fmt.Errorf("%w: output from offset %d, not %d", ErrNonsense, result.Offset, r.Offset)
	}
	buf := make([]byte, api.OutputHeaderSize+api.MaxOutputChunk)
	return &Output{stream: stream, broken: client.Done(), offset: result.Offset, buf: buf}, nil
}

// Output is what a process prints, record by record.
type Output struct {
	stream *wire.Stream
	broken <-chan struct{} // closed when the session has ended
	offset uint64
	buf    []byte
}

// Next returns the next record: its stream (api.Stdout or api.Stderr), its payload, valid until the next call, and
// the same with docker's 8-byte header in front. io.EOF when the process has ended and all was read; any other
// error means that the session broke and the output goes on at Offset.
func (o *Output) Next() (stream byte, payload, framed []byte, err error) {
	head := o.buf[:api.OutputHeaderSize]
	if _, err := io.ReadFull(o.stream, head); err != nil {
		// The multiplexer ends a stream with io.EOF also when its session breaks.
		select {
		case <-o.broken:
			err = io.ErrUnexpectedEOF
		default:
		}
		return 0, nil, nil, err
	}
	n := binary.BigEndian.Uint32(head[4:])
	if (head[0] != api.Stdout && head[0] != api.Stderr) || head[1]|head[2]|head[3] != 0 || n == 0 || n > api.MaxOutputChunk {
		return 0, nil, nil, fmt.Errorf("%w: an output record that begins with % x", ErrNonsense, head)
	}
	framed = o.buf[:api.OutputHeaderSize+int(n)]
	if _, err := io.ReadFull(o.stream, framed[api.OutputHeaderSize:]); err != nil {
		return 0, nil, nil, io.ErrUnexpectedEOF
	}
	o.offset += uint64(len(framed))
	return head[0], framed[api.OutputHeaderSize:], framed, nil
}

// Offset is the journal's offset after the record that Next returned last.
func (o *Output) Offset() uint64 { return o.offset }

// Acknowledge tells the agent that all records so far are safe and may be forgotten.
func (o *Output) Acknowledge() error {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], o.offset)
	_, err := o.stream.Write(b[:])
	return err
}

// Close ends the stream, and a Next that waits; the process goes on.
func (o *Output) Close() error {
	return errors.Join(o.stream.SetReadDeadline(time.Unix(1, 0)), o.stream.Close())
}
