package vm

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"regexp"
)

// maxTAP is the longest name of a network device on Linux, in bytes.
const maxTAP = 15

// Sizes of a user-mode network, in bits of its prefix: there must be room for gateway, resolver and guest.
const (
	minUserBits = 8
	maxUserBits = 29
)

var tapPattern = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.@:-]*$`)

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
	case n.TAP != "" && n.User != nil:
		return bad("both TAP and User")
	case n.TAP == "" && n.NetNS != "":
		return bad("a NetNS without a TAP")
	case n.NetNS != "" && !filepath.IsAbs(n.NetNS):
		return bad("NetNS %q is not absolute", n.NetNS)
	case n.TAP != "" && (len(n.TAP) > maxTAP || !tapPattern.MatchString(n.TAP)):
		return bad("TAP %q is not the name of a device", n.TAP)
	case n.User != nil:
		return n.User.check(bad)
	}
	return nil
}

func (u *User) check(bad func(format string, args ...any) error) error {
	s := u.Subnet
	if !s.IsValid() || !s.Addr().Is4() || s.Masked() != s || s.Bits() < minUserBits || s.Bits() > maxUserBits {
		return bad("Subnet %s is not an IPv4 network of /%d to /%d", s, minUserBits, maxUserBits)
	}
	for name, a := range map[string]netip.Addr{"Gateway": u.Gateway, "DNS": u.DNS} {
		if !s.Contains(a) || a == s.Addr() || !s.Contains(a.Next()) {
			return bad("%s %s is no host's address in %s", name, a, s)
		}
	}
	if u.Gateway == u.DNS {
		return bad("Gateway and DNS are both %s", u.DNS)
	}
	return nil
}

// Check reports what is wrong with f, as ErrInvalid.
func (f *Forward) Check() error {
	switch {
	case f.Protocol != "tcp" && f.Protocol != "udp":
		return fmt.Errorf("%w: forward: protocol %q is neither tcp nor udp", ErrInvalid, f.Protocol)
	case !f.Host.Addr().Is4() || f.Host.Port() == 0:
		return fmt.Errorf("%w: forward: host %s is no IPv4 address with a port", ErrInvalid, f.Host)
	case !f.Guest.Addr().Is4() || f.Guest.Port() == 0 || f.Guest.Addr().IsUnspecified():
		return fmt.Errorf("%w: forward: guest %s is no IPv4 address with a port", ErrInvalid, f.Guest)
	}
	return nil
}
