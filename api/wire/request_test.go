package wire

import (
	"bytes"
	"encoding/binary"
	"reflect"
	"strings"
	"testing"

	"github.com/cradlevm/cradle/api"
)

// TestRequestAttachment: what is attached arrives, beside the parameters and not in their JSON.
func TestRequestAttachment(t *testing.T) {
	sent := api.CreateRequest{ID: "a", User: "b", Seccomp: []byte{0, 1, 0xff}}
	r, err := newRequest(api.MethodCreate, sent)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(strings.ToLower(string(r.params)), "seccomp") {
		t.Errorf("the filter is in the JSON: %s", r.params)
	}
	frame, err := r.frame()
	if err != nil {
		t.Fatal(err)
	}
	got, err := readRequest(bytes.NewReader(frame))
	if err != nil || got.method != api.MethodCreate {
		t.Fatalf("%q, %v", got.method, err)
	}
	var arrived api.CreateRequest
	if err := got.decode(&arrived); err != nil || !reflect.DeepEqual(arrived, sent) {
		t.Errorf("%+v, %v", arrived, err)
	}
	if err := got.decode(new(api.ProcessRef)); err == nil {
		t.Error("parameters without room for an attachment took one")
	}
	big, _ := newRequest("m", strings.Repeat("x", api.MaxMessage))
	if _, err := big.frame(); err == nil {
		t.Error("a request beyond the bound was sent")
	}
}

// FuzzReadRequest: a request is read whole or refused, and what was read is written the same.
func FuzzReadRequest(f *testing.F) {
	f.Add([]byte{0, 0, 0, 5, 0, 0, 0, 0, 0})
	f.Add([]byte{0, 0, 0, 8, 1, 'm', 0, 0, 0, 1, 'a', '1'})
	f.Add([]byte{0, 0, 0, 4, 3, 'm', 0, 0})
	f.Add([]byte{0, 0, 0, 6, 1, 'm', 0xff, 0xff, 0xff, 0xff})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := readRequest(bytes.NewReader(data))
		if err != nil {
			return
		}
		frame, err := r.frame()
		if err != nil {
			t.Fatal(err)
		}
		if n := 4 + int(binary.BigEndian.Uint32(data)); !bytes.Equal(frame, data[:n]) {
			t.Fatalf("%x became %x", data[:n], frame)
		}
	})
}
