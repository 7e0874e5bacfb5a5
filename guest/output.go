package guest

import (
	"context"
	"encoding/binary"
	"io"

	"github.com/cradlevm/cradle/api"
)

// outputStream is what the output of a process needs of a stream.
type outputStream interface {
	io.ReadWriter
	// Last writes what is the last of this side, and half-closes the stream.
	Last(p []byte) error
}

// takeOutput makes the caller the one who serves the output, before the host hears that it does: the host may ask again
// at once, and the last to ask has it. The turn that it returns is closed when it is over.
func (p *process) takeOutput() (turn chan struct{}) {
	p.outMu.Lock()
	defer p.outMu.Unlock()
	if p.turn != nil {
		close(p.turn)
	}
	p.turn = make(chan struct{})
	return p.turn
}

// endOutput ends a turn, if it is not over; with nil whosever it is.
func (p *process) endOutput(turn chan struct{}) {
	p.outMu.Lock()
	defer p.outMu.Unlock()
	if p.turn != nil && (turn == nil || turn == p.turn) {
		close(p.turn)
		p.turn = nil
	}
}

// serveOutput sends the journal from an offset on, then how the process ended, and takes acknowledgements. It returns
// when the host has no more to say, and whether it has said that the process may be forgotten. turn is takeOutput's.
func (p *process) serveOutput(ctx context.Context, at uint64, turn chan struct{}, stream outputStream) bool {
	acks, forget := make(chan struct{}), false
	go func() {
		defer close(acks)
		makeWaitRoom()
		forget = p.takeAcks(stream)
		p.endOutput(turn)
	}()
	defer context.AfterFunc(ctx, func() { p.endOutput(turn) })()
	if p.sendJournal(at, stream, turn) != nil {
		return false
	}
	select {
	case <-acks:
		return forget
	case <-ctx.Done():
	case <-p.gone:
	}
	return false
}

// sendJournal sends the journal from an offset on and, when all of it has been sent, the exit record.
func (p *process) sendJournal(at uint64, stream outputStream, give <-chan struct{}) error {
	buf := make([]byte, 4<<10)
	for {
		n, ended, err := p.journal.read(at, buf, give)
		if err != nil || n == 0 && !ended {
			return nil // what has been sent last may still be acknowledged
		}
		if ended { // the process has exited: its exit closes the journal
			return stream.Last(p.result().AppendRecord(buf[:n]))
		}
		if _, err := stream.Write(buf[:n]); err != nil {
			return err
		}
		at += uint64(n)
		if n == len(buf) && n < 64<<10 {
			buf = make([]byte, 4*n)
		}
	}
}

// takeAcks reads acknowledged offsets until the host says no more, and returns whether its last word was to forget the
// process.
func (p *process) takeAcks(stream io.Reader) (forget bool) {
	var b [8]byte
	for {
		if _, err := io.ReadFull(stream, b[:]); err != nil {
			return false
		}
		at := binary.BigEndian.Uint64(b[:])
		if at == api.Forget {
			return true
		}
		p.journal.acknowledge(at)
	}
}
