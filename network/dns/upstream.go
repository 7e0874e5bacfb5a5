package dns

import (
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"
)

const maxUpstreams = 3 // as in the C library

// hostResolvers are the host's own, which may be stubs on its loopback: the server runs on the host.
type hostResolvers struct {
	fixed []netip.AddrPort
	path  string

	mu      sync.Mutex
	checked time.Time
	changed time.Time
	list    []netip.AddrPort
}

func newHostResolvers(o Options) *hostResolvers {
	h := &hostResolvers{fixed: o.Upstreams, path: o.ResolvConf}
	if h.path == "" {
		h.path = "/etc/resolv.conf"
	}
	return h
}

// get returns whom to ask now. The file is looked at once a second at most.
func (h *hostResolvers) get() []netip.AddrPort {
	if h.fixed != nil {
		return h.fixed
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if time.Since(h.checked) < time.Second {
		return h.list
	}
	h.checked = time.Now()
	info, err := os.Stat(h.path)
	if err != nil || info.ModTime().Equal(h.changed) {
		return h.list
	}
	b, err := os.ReadFile(h.path)
	if err != nil {
		return h.list
	}
	h.changed, h.list = info.ModTime(), nameservers(string(b))
	return h.list
}

// nameservers reads a resolv.conf.
func nameservers(text string) []netip.AddrPort {
	var all []netip.AddrPort
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 2 || f[0] != "nameserver" || len(all) == maxUpstreams {
			continue
		}
		if a, err := netip.ParseAddr(f[1]); err == nil {
			all = append(all, netip.AddrPortFrom(a.Unmap(), 53))
		}
	}
	return all
}
