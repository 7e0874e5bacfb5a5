package node

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"github.com/cradlevm/cradle/api"
	"github.com/cradlevm/cradle/sandbox"
)

// run is one life of a container in a VM: most often of its own, which then ends with it.
type run struct {
	vm    *sandbox.Sandbox
	owner *run            // whose VM it is when the container shares another's; nil: its own
	out   *sandbox.Output // the output that came with the start; nil when this daemon has not started the process
	over  chan struct{}   // closed by hurry
	ended chan struct{}   // closed when the container's state says that it has ended
	torn  chan struct{}   // closed when nothing of the VM is left

	phases *phases

	sharing sharing // with other containers, of a VM of its own

	stdinMu sync.Mutex
	stdin   io.WriteCloser // opened at its first use
}

func newRun(machine *sandbox.Sandbox, out *sandbox.Output) *run {
	return &run{vm: machine, out: out, over: make(chan struct{}), ended: make(chan struct{}), torn: make(chan struct{}),
		phases: newPhases()}
}

// hurry says that the container's process has exited: from now on no slow client holds its output up.
func (r *run) hurry() { close(r.over) }

// acknowledgeEvery is how many bytes of output may be safe here before the agent is told to forget them. It is well below
// api.OutputRing, so that the writer never waits for an acknowledgement that is due.
const acknowledgeEvery = api.OutputRing / 8

// callLimit bounds a call that an agent answers at once. A guest that takes longer is as good as dead.
const callLimit = 10 * time.Second

// signal sends a signal; a guest that does not answer is not waited for.
func (r *run) signal(ctx context.Context, p api.ProcessRef, signal int) error {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	return r.vm.Signal(ctx, p, signal, false)
}

// wait returns how a process ended. It outlives broken sessions: the next call opens another. An error means that
// the VM has gone, that its agent knows no such process or talks nonsense, or that ctx has ended.
func (r *run) wait(ctx context.Context, p api.ProcessRef) (api.ExitStatus, error) {
	for {
		status, err := r.vm.Wait(ctx, p)
		if err == nil || errors.Is(err, sandbox.ErrGone) || errors.Is(err, sandbox.ErrNonsense) ||
			errors.As(err, new(*api.Error)) || !retryPause(ctx) {
			return status, err
		}
	}
}

// knows reports whether the agent has the process, be it that it has ended, and its id in the guest: 0 when that is not
// known. An error means that the VM has gone or that ctx has ended.
func (r *run) knows(ctx context.Context, p api.ProcessRef) (pid int, known bool, err error) {
	for {
		pid, err := r.vm.Known(ctx, p)
		var answered *api.Error
		if errors.As(err, &answered) {
			return 0, answered.Code != api.CodeNotFound, nil
		}
		if err == nil || errors.Is(err, sandbox.ErrGone) || !retryPause(ctx) {
			return pid, err == nil, err
		}
	}
}

// flush unmounts the container in the guest, so that its disk is whole.
func (r *run) flush(ctx context.Context, p api.ProcessRef) error {
	for {
		err := r.vm.Delete(ctx, p)
		if err == nil || errors.Is(err, sandbox.ErrGone) || errors.As(err, new(*api.Error)) || !retryPause(ctx) {
			return err
		}
	}
}

// retryPause lets a moment pass before a broken session is opened again, so that a broken guest costs no CPU.
func retryPause(ctx context.Context) bool { return sleep(ctx, 100*time.Millisecond) }

// taking has a record of output.
type taking func(o *sandbox.Output, stream byte, payload, framed []byte)

// output hands over a process's output, record by record, from a journal's offset on, until it ends; then end knows how
// the process did. It outlives broken sessions. What take has returned from is acknowledged. Where the agent has
// forgotten what lies at the offset, it goes on with what is there. out is the output at that offset if it is open
// already, else nil. The stream that brought the end is the caller's to close.
func (r *run) output(ctx context.Context, p api.ProcessRef, out *sandbox.Output, offset uint64, end *outcome, take taking) (*sandbox.Output, error) {
	open, left := r.vm.Output, false
	for {
		var err error
		if out == nil {
			end.ask()
			out, err = open(ctx, p, offset)
		}
		if err == nil {
			stop := context.AfterFunc(ctx, func() { out.Close() })
			err = carry(out, end, take)
			offset = out.Offset()
			if stop() && !errors.Is(err, io.EOF) {
				out.Close()
			}
			if errors.Is(err, io.EOF) {
				return out, nil
			}
			out = nil
		}
		var answered *api.Error
		switch {
		case errors.Is(err, sandbox.ErrGone):
			return nil, err
		case errors.As(err, &answered):
			if answered.Code != api.CodeFailedPrecondition || left {
				return nil, err
			}
			open, left = r.vm.OutputLeft, true
			continue
		}
		select {
		case <-r.vm.Done():
			return nil, sandbox.ErrGone
		default:
		}
		if !retryPause(ctx) {
			return nil, err
		}
	}
}

// slowTake is how long a record may be taken before somebody else finds out whether the process has ended: its end lies
// behind its output, which a client holds up for as long as it likes.
const slowTake = 100 * time.Millisecond

// carry hands over records until the stream ends: io.EOF when the process has, and end knows it.
func carry(out *sandbox.Output, end *outcome, take taking) error {
	slow := time.AfterFunc(slowTake, end.ask)
	slow.Stop()
	acknowledged := out.Offset()
	if acknowledged > 0 { // what came before is safe; the one who took it may not have said so
		if err := out.Acknowledge(); err != nil {
			return err
		}
	}
	for {
		stream, payload, framed, err := out.Next()
		if status, ended := out.Exit(); ended {
			end.set(status, nil)
		}
		if err != nil {
			return err
		}
		slow.Reset(slowTake)
		take(out, stream, payload, framed)
		slow.Stop()
		if out.Offset()-acknowledged >= acknowledgeEvery {
			if err := out.Acknowledge(); err != nil {
				return err
			}
			acknowledged = out.Offset()
		}
	}
}

// stdinOf returns the container's standard input, opening it at its first use in this run.
func (r *run) stdinOf(ctx context.Context, p api.ProcessRef) (io.WriteCloser, error) {
	r.stdinMu.Lock()
	defer r.stdinMu.Unlock()
	if r.stdin == nil {
		w, err := r.vm.Stdin(ctx, p)
		if err != nil {
			return nil, err
		}
		r.stdin = w
	}
	return r.stdin, nil
}
