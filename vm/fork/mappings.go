package fork

import (
	"bufio"
	"fmt"
	"io"
	"slices"
	"strings"
)

// mapping is a range of addresses.
type mapping struct{ from, to uint64 }

// keptMappings lists, from /proc/PID/smaps, the mappings that children do not inherit: those with the flag "dc" of proc(5). Memory that children find empty (the flag "wf"), and
// such that they would share and can write to ("sh", "mw"), is an error.
func keptMappings(smaps io.Reader) ([]mapping, error) {
	var all []mapping
	var m mapping
	for lines := bufio.NewScanner(smaps); ; {
		if !lines.Scan() {
			return all, lines.Err()
		}
		flags, ok := strings.CutPrefix(lines.Text(), "VmFlags:")
		if !ok {
			var next mapping
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
			all = append(all, m)
		}
	}
}
