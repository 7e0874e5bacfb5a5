package guest

import (
	"testing"
	"unsafe"

	"github.com/cradlevm/cradle/api/wire"
)

// TestMakeRoom: after it, a goroutine's stack is where it is to stay. A number does not follow when a stack moves; without room
// the two differ.
func TestMakeRoom(t *testing.T) {
	moved := make(chan bool)
	for _, c := range []struct {
		make  func()
		use   func()
		moves bool
	}{
		{wire.MakeRoom, func() { deep(3) }, false}, {func() {}, func() { deep(3) }, true},
		{makeWaitRoom, func() { shallow() }, false}, // without it, it is for the detector of races to say whether the stack moves
	} {
		go func() {
			c.make()
			var here byte
			before := uintptr(unsafe.Pointer(&here))
			c.use()
			moved <- before != uintptr(unsafe.Pointer(&here))
		}()
		if got := <-moved; got != c.moves {
			t.Errorf("%+v: the stack moved: %v", c, got)
		}
	}
}

//go:noinline
func deep(n int) (sum int) {
	var frame [3 << 10]byte
	frame[n] = 1
	if n > 1 {
		sum = deep(n - 1)
	}
	for _, b := range &frame {
		sum += int(b)
	}
	return sum
}

//go:noinline
func shallow() (sum int) {
	var frame [1800]byte
	frame[1] = 1
	for _, b := range &frame {
		sum += int(b)
	}
	return sum
}
