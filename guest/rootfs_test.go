package guest

import (
	"testing"

	"golang.org/x/sys/unix"
)

// A disk that is not live yet is asked again; any other failure is the answer.
func TestWhenLive(t *testing.T) {
	for name, c := range map[string]struct {
		answers []error
		want    error
	}{
		"at once":      {[]error{nil}, nil},
		"a bit later":  {[]error{unix.ENXIO, nil}, nil},
		"broken":       {[]error{unix.EINVAL}, unix.EINVAL},
		"later broken": {[]error{unix.ENXIO, unix.EIO}, unix.EIO},
	} {
		calls := 0
		err := whenLive(func() error { calls++; return c.answers[calls-1] })
		if err != c.want || calls != len(c.answers) {
			t.Errorf("%s: %v after %d calls, want %v", name, err, calls, c.want)
		}
	}
}
