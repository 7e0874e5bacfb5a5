package wire

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/cradlevm/cradle/api"
)

func TestChunks(t *testing.T) {
	data := bytes.Repeat([]byte("chunk"), 50_000)
	var b bytes.Buffer
	w := NewChunkWriter(&b)
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.End(nil); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(NewChunkReader(bytes.NewReader(b.Bytes()))); err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	for cut := range 20 { // anywhere before the end it is not the end
		if _, err := io.ReadAll(NewChunkReader(bytes.NewReader(b.Bytes()[:b.Len()-1-cut]))); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("cut by %d: %v", cut+1, err)
		}
	}

	b.Reset()
	w = NewChunkWriter(&b)
	if err := w.End(api.Errorf(api.CodeInvalid, "no")); err != nil {
		t.Fatal(err)
	}
	r := NewChunkReader(&b)
	for range 2 {
		var e *api.Error
		if _, err := r.Read(make([]byte, 1)); !errors.As(err, &e) || e.Code != api.CodeInvalid {
			t.Errorf("%v", err)
		}
	}
	if _, err := NewChunkReader(bytes.NewReader([]byte{0xff, 0, 0, 0, 1})).Read(make([]byte, 9)); err == nil {
		t.Error("a chunk of 4 GiB was taken")
	}
}
