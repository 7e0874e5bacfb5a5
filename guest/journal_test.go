package guest

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/cradlevm/cradle/api"
)

// TestJournal moves many records of all sizes through the ring, with a reader that acknowledges in odd places.
func TestJournal(t *testing.T) {
	j := newJournal()
	var want bytes.Buffer
	var chunks [][]byte
	for range 3000 {
		p := bytes.Repeat([]byte{byte(rand.Uint32())}, 1+rand.IntN(api.MaxOutputChunk/16))
		head := make([]byte, api.OutputHeaderSize)
		head[0] = api.Stderr
		binary.BigEndian.PutUint32(head[4:], uint32(len(p)))
		want.Write(head)
		want.Write(p)
		chunks = append(chunks, p)
	}
	go func() {
		for _, p := range chunks {
			if !j.write(api.Stderr, p, nil) {
				t.Error("a record was refused")
			}
		}
		j.close()
	}()
	var got []byte
	buf := make([]byte, 5000)
	for ended := false; !ended; {
		var n int
		var err error
		if n, ended, err = j.read(uint64(len(got)), buf, nil); err != nil {
			t.Fatal(err)
		}
		got = append(got, buf[:n]...)
		if n > 0 && rand.IntN(3) == 0 || int(uint64(len(got))-j.base) > api.OutputRing/2 {
			j.acknowledge(uint64(len(got) - rand.IntN(n)))
		}
		j.mu.Lock()
		ring := len(j.ring)
		j.mu.Unlock()
		if ring > api.OutputRing {
			t.Fatalf("the ring has %d bytes", ring)
		}
	}
	if !bytes.Equal(got, want.Bytes()) {
		t.Errorf("%d bytes came out, %d went in", len(got), want.Len())
	}
}

func TestJournalFull(t *testing.T) {
	j := newJournal()
	if j.ring != nil {
		t.Error("an empty journal costs memory")
	}
	give := make(chan struct{})
	payload := make([]byte, api.MaxOutputChunk)
	n := 0
	done := make(chan struct{})
	go func() {
		defer close(done)
		for j.write(api.Stdout, payload, give) {
			n++
		}
	}()
	select {
	case <-done:
		t.Fatal("the writer does not wait")
	case <-time.After(50 * time.Millisecond):
	}
	j.mu.Lock()
	if held := j.end - j.base; held > api.OutputRing || held+uint64(len(payload))+api.OutputHeaderSize <= api.OutputRing {
		t.Errorf("%d bytes are held", held)
	}
	j.mu.Unlock()
	j.acknowledge(1 << 60) // not believed
	j.acknowledge(uint64(len(payload)))
	close(give)
	<-done
	if n == 0 {
		t.Error("nothing went in")
	}
	if _, err := j.begin(0, false); err == nil {
		t.Error("an acknowledged offset was found")
	}
	if _, err := j.begin(1<<40, true); err == nil {
		t.Error("an offset beyond the end was found")
	}
}
