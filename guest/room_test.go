package guest

import (
	"testing"
	"unsafe"
)

// TestMakeRoom: after it, a goroutine's stack is where it is to stay. A number does not follow when a stack moves; without
// makeRoom the two differ.
func TestMakeRoom(t *testing.T) {
	moved := make(chan bool)
	for _, roomy := range []bool{true, false} {
		go func() {
			if roomy {
				makeRoom()
			}
			var here byte
			before := uintptr(unsafe.Pointer(&here))
			deep(3)
			moved <- before != uintptr(unsafe.Pointer(&here))
		}()
		if got := <-moved; got == roomy {
			t.Errorf("makeRoom called: %v, the stack moved: %v", roomy, got)
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
