package wire

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/cradlevm/cradle/api"
)

// A request's frame is not JSON as a whole: the guest may be emulated, where each pass over a byte of JSON takes ten
// instructions and decoding takes five passes. Its body is
//
//	method's length (1) method attachment's length (4) attachment parameters (JSON)
//
// with big-endian lengths.
const requestOverhead = 1 + 4

// request is the first frame of a call.
type request struct {
	method     string
	attachment []byte
	params     json.RawMessage // may be empty
}

// attached are parameters that have bytes which do not travel as JSON.
type attached interface{ Attachment() []byte }

// attachable takes such bytes back.
type attachable interface{ Attach([]byte) }

var errRequest = errors.New("a request that is no request")

// newRequest makes a request of a call's parameters, which may be nil.
func newRequest(method string, params any) (r request, err error) {
	r.method = method
	if params == nil {
		return r, nil
	}
	if a, ok := params.(attached); ok {
		r.attachment = a.Attachment()
	}
	r.params, err = json.Marshal(params)
	return r, err
}

// frame makes one frame of the request.
func (r *request) frame() ([]byte, error) {
	size := requestOverhead + len(r.method) + len(r.attachment) + len(r.params)
	if size > api.MaxMessage || len(r.method) > 255 {
		return nil, fmt.Errorf("message of %d bytes is longer than the %d allowed", size, api.MaxMessage)
	}
	b := binary.BigEndian.AppendUint32(make([]byte, 0, 4+size), uint32(size))
	b = append(append(b, byte(len(r.method))), r.method...)
	b = append(binary.BigEndian.AppendUint32(b, uint32(len(r.attachment))), r.attachment...)
	return append(b, r.params...), nil
}

// readRequest reads a request, within the bounds of a frame.
func readRequest(from io.Reader) (r request, err error) {
	body, err := readBody(from)
	if err != nil {
		return r, err
	}
	if len(body) < 1 || len(body) < requestOverhead+int(body[0]) {
		return r, errRequest
	}
	method, rest := body[1:1+body[0]], body[1+body[0]:]
	n := binary.BigEndian.Uint32(rest)
	rest = rest[4:]
	if uint64(n) > uint64(len(rest)) {
		return r, errRequest
	}
	return request{method: string(method), attachment: rest[:n:n], params: rest[n:]}, nil
}

// decode fills a method's parameters.
func (r *request) decode(into any) error {
	if len(r.params) == 0 {
		return nil
	}
	if err := json.Unmarshal(r.params, into); err != nil {
		return err
	}
	if len(r.attachment) == 0 {
		return nil
	}
	a, ok := into.(attachable)
	if !ok {
		return errors.New("an attachment that nothing takes")
	}
	a.Attach(r.attachment)
	return nil
}
