package sandbox

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/cradlevm/cradle/api"
	"github.com/cradlevm/cradle/api/wire"
)

// Output is what a process prints, record by record, and how it ends.
type Output struct {
	stream *wire.Stream
	broken <-chan struct{} // closed when the session has ended
	offset uint64
	buf    []byte // grows to the longest record there was
	exit   *api.ExitStatus
}

// Next returns the next record: its stream (api.Stdout or api.Stderr), its payload, valid until the next call, and
// the same with docker's 8-byte header in front. io.EOF when the process has ended and all was read, and Exit knows how it
// has ended; any other error means that the session broke and the output goes on at Offset.
func (o *Output) Next() (stream byte, payload, framed []byte, err error) {
	if o.exit != nil {
		return 0, nil, nil, io.EOF
	}
	if o.buf, err = readRecord(o.stream, o.buf); err != nil {
		return 0, nil, nil, err
	}
	stream, payload, framed = o.buf[0], o.buf[api.OutputHeaderSize:], o.buf
	if stream == api.ExitRecord {
		exit, err := api.ParseExit(payload)
		if err != nil {
			return 0, nil, nil, fmt.Errorf("%w: %w", ErrNonsense, err)
		}
		o.exit = &exit
		return 0, nil, nil, io.EOF
	}
	o.offset += uint64(len(framed))
	return stream, payload, framed, nil
}

// readRecord reads one record, header included, into buf or, when that is too short, into a longer one. The multiplexer
// ends a stream with io.EOF also when its session breaks, and only the exit record ends the output: to the caller any end
// is io.ErrUnexpectedEOF.
func readRecord(from io.Reader, buf []byte) ([]byte, error) {
	buf = slices.Grow(buf[:0], api.OutputHeaderSize)[:api.OutputHeaderSize]
	if _, err := io.ReadFull(from, buf); err != nil {
		return buf, io.ErrUnexpectedEOF
	}
	n := binary.BigEndian.Uint32(buf[4:])
	known := buf[0] == api.Stdout || buf[0] == api.Stderr || buf[0] == api.ExitRecord
	if !known || buf[1]|buf[2]|buf[3] != 0 || n == 0 || n > api.MaxOutputChunk {
		return buf, fmt.Errorf("%w: an output record that begins with % x", ErrNonsense, buf)
	}
	buf = slices.Grow(buf, int(n))[:api.OutputHeaderSize+int(n)]
	if _, err := io.ReadFull(from, buf[api.OutputHeaderSize:]); err != nil {
		return buf, io.ErrUnexpectedEOF
	}
	return buf, nil
}

// Exit returns how the process ended, once Next has said that it has.
func (o *Output) Exit() (api.ExitStatus, bool) {
	if o.exit == nil {
		return api.ExitStatus{}, false
	}
	return *o.exit, true
}

// Offset is the journal's offset after the record that Next returned last.
func (o *Output) Offset() uint64 { return o.offset }

// Acknowledge tells the agent that all records so far are safe and may be forgotten.
func (o *Output) Acknowledge() error {
	_, err := o.stream.Write(binary.BigEndian.AppendUint64(nil, o.offset))
	return err
}

// Forget tells the agent that nobody wants to know more of the process, which has ended as Exit says, and closes the
// output. False means that the agent has to be asked in another way: the session is gone, or the end has not been read.
func (o *Output) Forget() bool {
	if o.exit == nil {
		return false
	}
	select {
	case <-o.broken:
		return false
	default:
		go o.stream.Last(binary.BigEndian.AppendUint64(nil, api.Forget)) // a guest that reads nothing would hold it up
		return true
	}
}

// Close ends the stream, and a Next that waits; the process goes on.
func (o *Output) Close() error {
	return errors.Join(o.stream.SetReadDeadline(time.Unix(1, 0)), o.stream.Close())
}
