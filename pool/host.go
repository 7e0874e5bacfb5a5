package pool

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"strconv"
)

// Host says what the pool's sandboxes cost this machine. The zero Host asks Linux.
type Host struct {
	// Memory returns the host's memory and how much of it is available without swapping, bytes.
	Memory func() (total, available int64, err error)
	// Private returns how many bytes of the host's memory a monitor's process has for itself: not the template's, which
	// all share until they write.
	Private func(pid int) (int64, error)
}

func (h Host) withDefaults() Host {
	if h.Memory == nil {
		h.Memory = hostMemory
	}
	if h.Private == nil {
		h.Private = privateMemory
	}
	return h
}

func hostMemory() (total, available int64, err error) {
	sizes, err := kilobytes("/proc/meminfo", "MemTotal", "MemAvailable")
	if err != nil {
		return 0, 0, err
	}
	return sizes[0], sizes[1], nil
}

// kilobytes reads fields of a file of /proc that is "Name:  n kB" in each line, as bytes.
func kilobytes(path string, names ...string) ([]int64, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	sizes, found := make([]int64, len(names)), 0
	for lines := bufio.NewScanner(bytes.NewReader(b)); lines.Scan(); {
		fields := bytes.Fields(lines.Bytes())
		for i, name := range names {
			if len(fields) < 2 || string(fields[0]) != name+":" {
				continue
			}
			n, err := strconv.ParseInt(string(fields[1]), 10, 53)
			if err != nil {
				return nil, fmt.Errorf("read %s: %w", path, err)
			}
			sizes[i] = n << 10
			found++
		}
	}
	if found != len(names) {
		return nil, fmt.Errorf("read %s: it does not say all of %q", path, names)
	}
	return sizes, nil
}
