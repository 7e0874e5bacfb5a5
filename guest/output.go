package guest

import (
	"encoding/binary"
	"io"
)

// outputStream is what MethodOutput needs of a stream.
type outputStream interface {
	io.ReadWriter
	CloseWrite() error
}

// takeAcks reads acknowledged offsets until the host says no more.
func (p *process) takeAcks(stream io.Reader) {
	var b [8]byte
	for {
		if _, err := io.ReadFull(stream, b[:]); err != nil {
			return
		}
		p.journal.acknowledge(binary.BigEndian.Uint64(b[:]))
	}
}
