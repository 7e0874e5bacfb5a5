package erofs

import (
	"fmt"
	"strings"
)

// errTruncated is the stream ending inside a header or inside a file's data.
var errTruncated = invalidf("truncated tar")

func invalidf(format string, a ...any) error {
	return fmt.Errorf("%w: %s", ErrInvalid, fmt.Sprintf(format, a...))
}

// quote shows a name from the tar in a message: escaped, and cut, for it may be a megabyte.
func quote(name string) string {
	if len(name) > 256 {
		return fmt.Sprintf("%.256q…", name)
	}
	return fmt.Sprintf("%q", name)
}

// detail is the message of an ErrInvalid without the sentinel's words, to be put behind an entry's name.
func detail(err error) string { return strings.TrimPrefix(err.Error(), ErrInvalid.Error()+": ") }
