package pool

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
)

// Bits of an entry of /proc/PID/pagemap (Documentation/admin-guide/mm/pagemap.rst of Linux), 64 bits for each page.
const (
	pageExclusive = 1 << 56 // mapped nowhere else
	pageShared    = 1 << 61 // of a file, or shared anonymous memory
	pageSwapped   = 1 << 62
	pagePresent   = 1 << 63
	pageEntry     = 8
)

// privateMemory counts the pages that a process has for itself, bytes. It looks at each: those that it has inherited from its parent are
// anonymous, too, and shared until one of the two writes there; and those of the template that it has only read are the template's, whatever
// smaps calls private. What is swapped out counts as its own.
func privateMemory(pid int) (int64, error) {
	maps, err := os.Open(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return 0, err
	}
	defer maps.Close()
	pages, err := os.Open(fmt.Sprintf("/proc/%d/pagemap", pid))
	if err != nil {
		return 0, err
	}
	defer pages.Close()
	size := int64(os.Getpagesize())
	sum := int64(0)
	for lines := bufio.NewScanner(maps); lines.Scan(); {
		var from, to uint64
		if _, err := fmt.Sscanf(lines.Text(), "%x-%x", &from, &to); err != nil {
			return 0, fmt.Errorf("read %s: %w", maps.Name(), err)
		}
		if strings.HasSuffix(lines.Text(), "[vsyscall]") { // not of user space
			continue
		}
		entries := io.NewSectionReader(pages, int64(from)/size*pageEntry, int64(to-from)/size*pageEntry)
		n, err := exclusive(entries)
		if err != nil {
			return 0, fmt.Errorf("read %s: %w", pages.Name(), err)
		}
		sum += n * size
	}
	return sum, nil
}

// exclusive counts the pages that are anonymous and nobody else's.
func exclusive(entries io.Reader) (n int64, err error) {
	buf := make([]byte, 64<<10)
	for {
		got, err := io.ReadFull(entries, buf)
		for b := buf[:got/pageEntry*pageEntry]; len(b) > 0; b = b[pageEntry:] {
			e := binary.NativeEndian.Uint64(b)
			if e&(pagePresent|pageExclusive|pageShared) == pagePresent|pageExclusive || e&pageSwapped != 0 {
				n++
			}
		}
		switch {
		case err == io.EOF, errors.Is(err, io.ErrUnexpectedEOF):
			return n, nil
		case err != nil:
			return n, err
		}
	}
}
