package guest

import (
	"encoding/binary"
	"fmt"
	"io"

	"github.com/cradlevm/cradle/api"
)

// readRecords takes output records apart until the stream ends, acknowledging each, as the host does.
func readRecords(s io.ReadWriter, offset uint64) (stdout, stderr []byte, err error) {
	var head [api.OutputHeaderSize]byte
	for {
		if _, err := io.ReadFull(s, head[:]); err == io.EOF {
			return stdout, stderr, nil
		} else if err != nil {
			return stdout, stderr, err
		}
		n := binary.BigEndian.Uint32(head[4:])
		if n == 0 || n > api.MaxOutputChunk || head[1] != 0 || head[2] != 0 || head[3] != 0 {
			return stdout, stderr, fmt.Errorf("header %x", head)
		}
		payload := make([]byte, n)
		if _, err := io.ReadFull(s, payload); err != nil {
			return stdout, stderr, err
		}
		switch head[0] {
		case api.ExitRecord: // what MethodWait says as well
			if _, err := api.ParseExit(payload); err != nil {
				return stdout, stderr, err
			}
		case api.Stdout:
			stdout = append(stdout, payload...)
		case api.Stderr:
			stderr = append(stderr, payload...)
		default:
			return stdout, stderr, fmt.Errorf("header %x", head)
		}
		offset += uint64(len(head) + int(n))
		s.Write(binary.BigEndian.AppendUint64(nil, offset))
	}
}
