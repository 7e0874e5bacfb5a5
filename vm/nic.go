package vm

import (
	"fmt"
	"path/filepath"
	"regexp"
	"sync"
)

// maxTAP is the longest name of a network device on Linux, in bytes.
const maxTAP = 15

var tapPattern = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.@:-]*$`) })

// checkNICs reports what is wrong with a VM's interfaces, as ErrInvalid.
func checkNICs(nics []NIC) error {
	if len(nics) > MaxNICs {
		return fmt.Errorf("%w: NICs: %d, %d at most", ErrInvalid, len(nics), MaxNICs)
	}
	type device struct{ tap, netns string }
	seen := map[device]bool{}
	for i, n := range nics {
		if err := n.Check(); err != nil {
			return fmt.Errorf("interface %d: %w", i, err)
		}
		d := device{n.TAP, n.NetNS}
		if n.TAP != "" && seen[d] {
			return fmt.Errorf("interface %d: %w: NICs: TAP %s is there twice", i, ErrInvalid, n.TAP)
		}
		seen[d] = true
	}
	return nil
}

// Check reports what is wrong with n, as ErrInvalid.
func (n *NIC) Check() error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%w: NICs: %s", ErrInvalid, fmt.Sprintf(format, args...))
	}
	switch {
	case n.TAP != "" && n.Stream:
		return bad("both TAP and Stream")
	case n.TAP == "" && n.NetNS != "":
		return bad("a NetNS without a TAP")
	case n.NetNS != "" && !filepath.IsAbs(n.NetNS):
		return bad("NetNS %q is not absolute", n.NetNS)
	case n.TAP != "" && (len(n.TAP) > maxTAP || !tapPattern().MatchString(n.TAP)):
		return bad("TAP %q is not the name of a device", n.TAP)
	}
	return nil
}
