package wire

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"io"
	"testing"
	"time"

	"github.com/cradlevm/cradle/api"
)

// chunks is a port that brings data in pieces of the sizes given, then fails.
type chunks struct {
	data  []byte
	sizes []byte
	out   bytes.Buffer
}

func (c *chunks) Read(p []byte) (int, error) {
	if len(c.data) == 0 {
		return 0, io.EOF
	}
	n := 1
	if len(c.sizes) > 0 {
		n = 1 + int(c.sizes[0])
		c.sizes = c.sizes[1:]
	} else {
		n = len(c.data)
	}
	n = copy(p, c.data[:min(n, len(c.data))])
	c.data = c.data[n:]
	return n, nil
}

func (c *chunks) Write(p []byte) (int, error) { return c.out.Write(p) }

// FuzzGuestScan: however the port cuts its bytes, the agent finds the same sessions with the same bytes.
func FuzzGuestScan(f *testing.F) {
	hello := append(append(append(append([]byte{}, magic[:]...), 0, 0, 0, 1), testToken[:]...), make([]byte, nonceSize)...)
	f.Add([]byte("before"), []byte("after"), []byte{3, 0, 9})
	f.Add(hello[:30], hello, []byte{0, 0, 0})
	f.Add([]byte{}, append(hello[:20:20], hello...), []byte{19})
	f.Add(magic[:3], bytes.Repeat(magic[:1], 100), []byte{0})
	f.Fuzz(func(t *testing.T, before, after, sizes []byte) {
		if len(before)+len(after) > 4096 || bytes.Contains(before, magic[:]) {
			return
		}
		stream := append(append(append([]byte{}, before...), hello...), after...)
		want := sessions(&chunks{data: bytes.Clone(stream)})
		got := sessions(&chunks{data: bytes.Clone(stream), sizes: sizes})
		if len(want) == 0 || len(got) != len(want) {
			t.Fatalf("%d sessions in pieces, %d whole", len(got), len(want))
		}
		for i := range want {
			if !bytes.Equal(got[i], want[i]) && i == len(want)-1 {
				// Only what was held back when the port failed may be missing.
				if !bytes.HasPrefix(want[i], got[i]) && !bytes.HasPrefix(got[i], want[i]) {
					t.Fatalf("session %d: %x, whole: %x", i, got[i], want[i])
				}
			}
		}
	})
}

// sessions collects what each session of a port reads.
func sessions(port io.ReadWriter) (all [][]byte) {
	l := Listen(port)
	for {
		c, err := l.Accept()
		if err != nil {
			return all
		}
		got, _ := io.ReadAll(c)
		all = append(all, got)
	}
}

// hostile is a guest that says what it likes; the host's nonce can be put into its words.
type hostile struct {
	before, after []byte
	answer        bool
	nonce         []byte
	r             io.Reader
}

func (h *hostile) Write(p []byte) (int, error) {
	if len(p) == helloSize {
		h.nonce = bytes.Clone(p[helloSize-nonceSize:])
	}
	return len(p), nil
}

func (h *hostile) Read(p []byte) (int, error) {
	if h.r == nil {
		said := bytes.Clone(h.before)
		if h.answer {
			said = append(said, magic[:]...)
			said = binary.BigEndian.AppendUint32(said, api.ProtocolVersion)
			said = append(said, h.nonce...)
		}
		h.r = bytes.NewReader(append(said, h.after...))
	}
	return h.r.Read(p)
}

// FuzzHostHandshake: whatever lies before it, the answer is found and nothing behind it is swallowed; without one the
// handshake fails.
func FuzzHostHandshake(f *testing.F) {
	f.Add([]byte("stale"), []byte("next"), true)
	f.Add(magic[:], []byte{}, true)
	f.Add(append(magic[:7:7], magic[:]...), []byte("x"), true)
	f.Add(bytes.Repeat(magic[:], 10), magic[:], false)
	f.Fuzz(func(t *testing.T, before, after []byte, answer bool) {
		h := &hostile{before: before, after: after, answer: answer}
		err := handshake(h, testToken)
		if (err == nil) != answer {
			t.Fatalf("answer %v: %v", answer, err)
		}
		if answer {
			if rest, _ := io.ReadAll(h); !bytes.Equal(rest, after) {
				t.Fatalf("left %x of %x", rest, after)
			}
		}
	})
}

// FuzzReadFrame: a frame is read whole or refused, within its bounds, and what is written can be read.
func FuzzReadFrame(f *testing.F) {
	f.Add([]byte{0, 0, 0, 2, '{', '}'})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, '{', '}'})
	f.Add([]byte("\x00\x00\x00\x2a{\"error\":{\"code\":\"x\",\"message\":\"y\"}}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		var resp response
		start := time.Now()
		if err := readFrame(bytes.NewReader(data), &resp); err == nil {
			if len(data) < 4 || int(binary.BigEndian.Uint32(data)) > len(data)-4 {
				t.Fatal("a cut frame was taken")
			}
			var b bytes.Buffer
			if err := writeFrame(&b, resp); err != nil {
				t.Fatal(err)
			}
			var again response
			if err := readFrame(&b, &again); err != nil {
				t.Fatal(err)
			}
			x, _ := json.Marshal(resp)
			y, _ := json.Marshal(again)
			if !bytes.Equal(x, y) {
				t.Fatalf("%s, then %s", x, y)
			}
		}
		if time.Since(start) > 5*time.Second {
			t.Fatal("took long")
		}
	})
}
