package fork

import (
	"bufio"
	"fmt"
	"io"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// advice is what a process is to tell the kernel of a range of its memory (madvise(2)).
type advice struct {
	from, to uint64 // addresses
	what     uint64
}

// advices lists, from /proc/PID/smaps, with its flags as proc(5) has them, what a process has to say before copies are made of it: that they inherit
// what it has kept from its children ("dc"); and that they are given no huge pages where it wants some ("hg"), for a copy writes here and there, and would
// be given, and have to clear, two megabytes for each of these places. The huge pages that there are stay. Memory that children find empty (the
// flag "wf"), and such that they would share and can write to ("sh", "mw"), is an error.
func advices(smaps io.Reader) ([]advice, error) {
	var all []advice
	var m advice
	for lines := bufio.NewScanner(smaps); ; {
		if !lines.Scan() {
			return all, lines.Err()
		}
		flags, ok := strings.CutPrefix(lines.Text(), "VmFlags:")
		if !ok {
			var next advice
			if n, _ := fmt.Sscanf(lines.Text(), "%x-%x ", &next.from, &next.to); n == 2 {
				m = next
			}
			continue
		}
		words := strings.Fields(flags)
		if slices.Contains(words, "wf") {
			return nil, fmt.Errorf("%w: its memory at %#x is wiped in children", ErrUnsupported, m.from)
		}
		if slices.Contains(words, "sh") && slices.Contains(words, "mw") {
			return nil, fmt.Errorf("%w: its memory at %#x is shared", ErrUnsupported, m.from)
		}
		if slices.Contains(words, "dc") && !slices.Contains(words, "io") {
			all = append(all, advice{m.from, m.to, unix.MADV_DOFORK})
		}
		if slices.Contains(words, "hg") {
			all = append(all, advice{m.from, m.to, unix.MADV_NOHUGEPAGE})
		}
	}
}
