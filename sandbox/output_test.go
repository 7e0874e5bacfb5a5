package sandbox

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"testing"

	"github.com/cradlevm/cradle/api"
)

// FuzzReadRecord: whatever a guest sends, a record is read as it was sent or refused, within bounds.
func FuzzReadRecord(f *testing.F) {
	f.Add([]byte{1, 0, 0, 0, 0, 0, 0, 2, 'h', 'i'})
	f.Add(api.ExitStatus{Code: 137, OOMKilled: true, UnixNanos: -1}.AppendRecord(nil))
	f.Add([]byte{api.ExitRecord, 0, 0, 0, 0, 0, 0, 1, 0})
	f.Add([]byte{3, 0, 0, 0, 0, 0, 0, 1, 0})
	f.Add([]byte{2, 0, 0, 0, 0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, data []byte) {
		r := bytes.NewReader(data)
		var buf []byte
		for at := 0; ; {
			var err error
			if buf, err = readRecord(r, buf); err != nil {
				if !errors.Is(err, ErrNonsense) && err != io.ErrUnexpectedEOF {
					t.Fatal(err)
				}
				return
			}
			if len(buf) > api.OutputHeaderSize+api.MaxOutputChunk || !bytes.Equal(buf, data[at:at+len(buf)]) {
				t.Fatalf("%d bytes of a record that was not sent", len(buf))
			}
			if n := binary.BigEndian.Uint32(buf[4:]); int(n) != len(buf)-api.OutputHeaderSize {
				t.Fatalf("a record of %d bytes says %d", len(buf), n)
			}
			at += len(buf)
			if buf[0] != api.ExitRecord {
				continue
			}
			st, err := api.ParseExit(buf[api.OutputHeaderSize:])
			if err == nil && (st.Code < 0 || st.Code > 255 || !bytes.Equal(st.AppendRecord(nil), buf)) {
				t.Fatalf("%+v", st)
			}
		}
	})
}
