package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/cradlevm/cradle/api"
)

// Create makes a container from disks that are already there.
func (s *Sandbox) Create(ctx context.Context, r api.CreateRequest) error {
	return s.call(ctx, api.MethodCreate, r, nil)
}

// Prepare makes of a container, from disks that are already there, what does not depend on who it is: r is the first half
// of api.CreateRequest.Split, with an id that the Create or Run that takes it names.
func (s *Sandbox) Prepare(ctx context.Context, r api.CreateRequest) error {
	return s.call(ctx, api.MethodPrepare, r, nil)
}

// maxPID is the most that a process id can be on Linux.
const maxPID = 1 << 22

// Run makes a container from disks that are already there and runs its first process, whose output it returns. made is
// how long the guest says that it took until the process was started.
func (s *Sandbox) Run(ctx context.Context, r api.CreateRequest) (out *Output, made time.Duration, err error) {
	out, started, err := s.start(ctx, api.MethodRun, r)
	return out, max(0, time.Duration(started.CreateNanos)), err
}

// Exec starts another process in a running container and returns its output and its process id, which is the guest's. A
// process id that cannot be is ErrNonsense.
func (s *Sandbox) Exec(ctx context.Context, r api.ExecRequest) (*Output, int, error) {
	out, started, err := s.start(ctx, api.MethodExec, r)
	return out, started.PID, err
}

// start starts a process.
func (s *Sandbox) start(ctx context.Context, method string, params any) (*Output, api.StartResult, error) {
	var started api.StartResult
	out, err := s.follow(ctx, method, params, &started)
	if err == nil && (started.PID < 1 || started.PID > maxPID) {
		go out.Close()
		out, err = nil, fmt.Errorf("%w: process id %d", ErrNonsense, started.PID)
	}
	return out, started, err
}

// Wait returns how the process ended, once it has. What the guest says is checked: a code outside 0..255 is
// ErrNonsense.
func (s *Sandbox) Wait(ctx context.Context, p api.ProcessRef) (api.ExitStatus, error) {
	client, err := s.session(ctx)
	if err != nil {
		return api.ExitStatus{}, err
	}
	var st api.ExitStatus
	stream, err := client.Stream(ctx, api.MethodWait, p, &st) // not a Call: the agent has to know when it is given up
	if err != nil {
		return api.ExitStatus{}, s.classify(err)
	}
	go stream.Close() // a guest that reads nothing would hold it up
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
	stream, _, err := s.stream(ctx, api.MethodStdin, p, nil)
	if err != nil {
		return nil, err
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
	result := api.OutputResult{Offset: r.Offset}
	out, err := s.follow(ctx, api.MethodOutput, r, &result)
	if err != nil {
		return nil, err
	}
	if result.Offset < r.Offset {
		go out.Close()
		return nil, fmt.Errorf("%w: output from offset %d, not %d", ErrNonsense, result.Offset, r.Offset)
	}
	out.offset = result.Offset
	return out, nil
}

// follow makes a call that is answered with a process's output.
func (s *Sandbox) follow(ctx context.Context, method string, params, result any) (*Output, error) {
	stream, broken, err := s.stream(ctx, method, params, result)
	if err != nil {
		return nil, err
	}
	return &Output{stream: stream, broken: broken}, nil
}
