package dump

import (
	"errors"
	"testing"

	"github.com/vishvananda/netlink"
)

// TestInterruptedDump: a list that changed under the kernel's hands is asked for again, but not for ever.
func TestInterruptedDump(t *testing.T) {
	calls := 0
	until := func(n int, last error) func() ([]int, error) {
		calls = 0
		return func() ([]int, error) {
			if calls++; calls < n {
				return []int{1}, netlink.ErrDumpInterrupted
			}
			return []int{1, 2}, last
		}
	}
	if all, err := Whole(until(3, nil)); len(all) != 2 || err != nil || calls != 3 {
		t.Errorf("%v, %v after %d calls", all, err, calls)
	}
	other := errors.New("other")
	if _, err := Whole(until(1, other)); err != other || calls != 1 {
		t.Errorf("%v after %d calls", err, calls)
	}
	if _, err := Whole(until(1<<20, nil)); !errors.Is(err, netlink.ErrDumpInterrupted) || calls != attempts {
		t.Errorf("%v after %d calls", err, calls)
	}
}
