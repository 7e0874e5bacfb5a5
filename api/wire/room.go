package wire

import "runtime"

// stackRoom is what a call and the start of a process need of a goroutine's stack, in bytes, with some to spare.
const stackRoom = 12 << 10

// MakeRoom has the calling goroutine's stack grow at once to what a call needs. It would grow there by doubling, and each
// time what is on it is copied frame by frame, which cost an emulated guest half of all that a small call did; a stack
// with two frames on it is copied for next to nothing.
func MakeRoom() { reserve(false) }

// reserve needs a frame of stackRoom; only if asked it is written to.
//
//go:noinline
func reserve(use bool) {
	if use {
		var room [stackRoom]byte
		fill(&room)
	}
}

//go:noinline
func fill(room *[stackRoom]byte) { runtime.KeepAlive(room) }
