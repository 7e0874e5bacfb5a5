package guest

import "runtime"

// waitRoom is what it takes of a goroutine's stack to read a stream and to pass on what comes, in bytes.
const waitRoom = 2 << 10

// makeWaitRoom is wire.MakeRoom for a goroutine that only waits for bytes.
func makeWaitRoom() { reserve(false) }

//go:noinline
func reserve(use bool) {
	if use {
		var room [waitRoom]byte
		fill(&room)
	}
}

//go:noinline
func fill(room *[waitRoom]byte) { runtime.KeepAlive(room) }
