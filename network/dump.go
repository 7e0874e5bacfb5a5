package network

import (
	"errors"

	"github.com/vishvananda/netlink"
)

// dumpAttempts bounds how often a list that changed while the kernel told it is asked for.
const dumpAttempts = 20

// whole asks the kernel for a list until it has told it in one piece: interfaces come and go all the time.
func whole[T any](list func() ([]T, error)) ([]T, error) {
	for attempt := 1; ; attempt++ {
		all, err := list()
		if attempt == dumpAttempts || !errors.Is(err, netlink.ErrDumpInterrupted) {
			return all, err
		}
	}
}
