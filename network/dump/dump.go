// Package dump reads lists from the kernel that change while it tells them.
package dump

import (
	"errors"

	"github.com/vishvananda/netlink"
)

// attempts bounds how often a list that changed while the kernel told it is asked for.
const attempts = 20

// Whole asks the kernel for a list until it has told it in one piece: interfaces come and go all the time. An error is that of
// list, also netlink.ErrDumpInterrupted when it never does.
func Whole[T any](list func() ([]T, error)) ([]T, error) {
	for attempt := 1; ; attempt++ {
		all, err := list()
		if attempt == attempts || !errors.Is(err, netlink.ErrDumpInterrupted) {
			return all, err
		}
	}
}
