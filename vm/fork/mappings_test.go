package fork

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// entry is one of /proc/PID/smaps.
func entry(span, flags string) string {
	return span + " rw-p 00000000 00:01 1024 /memfd:x (deleted)\nSize: 4 kB\nVmFlags: " + flags + "\n"
}

func TestAdvices(t *testing.T) {
	for name, tc := range map[string]struct {
		smaps string
		want  []advice
		fails bool
	}{
		"usual":       {smaps: entry("1000-2000", "rd wr mr mw me ac sd ")},
		"kept":        {smaps: entry("1000-2000", "rd mr mw") + entry("7f0000-7f1000", "rd wr mr mw me dc ac"), want: []advice{{0x7f0000, 0x7f1000, unix.MADV_DOFORK}}},
		"huge":        {smaps: entry("1000-2000", "rd wr mr mw me ac hg"), want: []advice{{0x1000, 0x2000, unix.MADV_NOHUGEPAGE}}},
		"device":      {smaps: entry("1000-2000", "rd wr mr mw me dc io")},
		"wiped":       {smaps: entry("1000-2000", "rd wr mr mw me wf"), fails: true},
		"shared":      {smaps: entry("1000-2000", "rd wr sh mr mw me ms ac"), fails: true},
		"shared soon": {smaps: entry("1000-2000", "rd sh mr mw me ms ac"), fails: true}, // mprotect(2) would make it writable
		"read only":   {smaps: entry("1000-2000", "rd sh mr me ms ac")},
		"empty":       {},
	} {
		got, err := advices(strings.NewReader(tc.smaps))
		if !slices.Equal(got, tc.want) || (err != nil) != tc.fails || tc.fails && !errors.Is(err, ErrUnsupported) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}
