package house

import (
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/cradlevm/cradle/network/bpf"
	"github.com/cradlevm/cradle/network/dump"
)

// tag are the four digits of a hash of the networks' directory that their TAPs and firewall bear.
func (h *House) tag() string {
	hash := sha256.Sum256([]byte(filepath.Join(h.Root(), "networks")))
	return fmt.Sprintf("%x", hash[:2])
}

// networks lists the TAPs and the firewall of the house's networks.
func (h *House) networks() []string {
	left, _ := filepath.Glob("/sys/class/net/ct" + h.tag() + "-*")
	if os.Geteuid() != 0 {
		return left // who could not have made a firewall either
	}
	c, err := nftables.New()
	if err != nil {
		return append(left, fmt.Sprintf("perhaps a firewall: %v", err))
	}
	tables, err := c.ListTables()
	if err != nil {
		return append(left, fmt.Sprintf("perhaps a firewall: %v", err))
	}
	for _, t := range tables {
		if t.Name == "cradle-"+h.tag() {
			left = append(left, "nftables table "+t.Name)
		}
	}
	return left
}

// Kernel is what the host has of the house's networks, a line for each thing, sorted:
//
//	bridge PREFIX           up, with this gateway's address (a line for each)
//	tap PREFIX MAC PID      of a process, guarded, up, on the bridge of this address, which knows the guest by this MAC
//	forward KEY ADDR:PORT   an element of the firewall's maps of ports: protocol, the host's address (* for all) and port
//	lease FILE              of the store of endpoints
//	listen PROTO ADDR:PORT  a socket of the daemon's
//
// and one that begins with "!" for each thing that must not be. TAPs that are nobody's, down and pass nothing are spare, or on their way out.
func (h *House) Kernel() ([]string, error) {
	links, err := h.linkLines()
	if err != nil {
		return nil, err
	}
	ports, err := h.portLines()
	if err != nil {
		return nil, err
	}
	leases, err := filepath.Glob(filepath.Join(h.Root(), "networks", "endpoints", "*"))
	if err != nil {
		return nil, err
	}
	for i, path := range leases {
		leases[i] = "lease " + filepath.Base(path)
	}
	sockets, err := listening(h.DaemonPID())
	lines := slices.Concat(links, ports, leases, sockets)
	slices.Sort(lines)
	return lines, err
}

// linkLines are those of bridges and TAPs.
func (h *House) linkLines() (lines []string, err error) {
	all, err := dump.Whole(netlink.LinkList)
	if err != nil {
		return nil, err
	}
	bridges := map[int]string{}
	var taps []netlink.Link
	var indexes []int
	for _, l := range all {
		switch {
		case strings.HasPrefix(l.Attrs().Name, "ct"+h.tag()+"-"):
			taps, indexes = append(taps, l), append(indexes, l.Attrs().Index)
		case l.Attrs().Alias == "cradle "+filepath.Join(h.Root(), "networks"):
			bridges[l.Attrs().Index] = l.Attrs().Name
			addresses, err := dump.Whole(func() ([]netlink.Addr, error) { return netlink.AddrList(l, netlink.FAMILY_ALL) })
			if err != nil {
				return nil, err
			}
			for _, a := range addresses {
				if !a.IP.IsLinkLocalUnicast() {
					lines = append(lines, "bridge "+a.IPNet.String())
				}
				if a.IP.To4() != nil {
					bridges[l.Attrs().Index] = a.IPNet.String()
				}
			}
			if l.Attrs().Flags&net.FlagUp == 0 {
				lines = append(lines, "!bridge "+l.Attrs().Name+" is down")
			}
		}
	}
	guards, err := bpf.Adopt(indexes)
	if err != nil {
		return nil, err
	}
	defer guards.Close()
	assigned, err := guards.Assigned()
	if err != nil {
		return nil, err
	}
	for _, i := range assigned {
		if !slices.Contains(indexes, i) {
			lines = append(lines, fmt.Sprintf("!guard of interface %d, which is gone", i))
		}
	}
	open := tapHolders()
	for _, l := range taps {
		line, err := tapLine(l, bridges, open[l.Attrs().Name], guards, slices.Contains(assigned, l.Attrs().Index))
		if err != nil {
			return nil, err
		}
		lines = append(lines, line...)
	}
	return lines, nil
}

// tapLine is a TAP's line, and what is wrong with it. pid is of the process that has it open; 0: none.
func tapLine(l netlink.Link, bridges map[int]string, pid int, guards *bpf.Guards, assigned bool) (lines []string, err error) {
	a := l.Attrs()
	wrong := func(what string) { lines = append(lines, "!"+a.Name+" "+what) }
	if !guards.Guarded(a.Index) {
		if _, err := netlink.LinkByIndex(a.Index); errors.As(err, new(netlink.LinkNotFoundError)) {
			return nil, nil // it was being deleted
		}
		wrong("is not guarded")
	}
	up, on := a.Flags&net.FlagUp != 0, a.MasterIndex != 0
	if up != on || up != assigned {
		wrong(fmt.Sprintf("is up: %v, on a bridge: %v, assigned: %v", up, on, assigned))
	}
	if !up && pid == 0 || !on {
		return lines, nil
	}
	if pid == 0 {
		wrong("is up and nobody has it open")
	}
	entries, err := dump.Whole(func() ([]netlink.Neigh, error) { return netlink.NeighList(a.Index, unix.AF_BRIDGE) })
	if err != nil {
		return nil, err
	}
	mac := "of nobody"
	for _, e := range entries {
		if e.Flags&unix.NTF_SELF == 0 && e.State == unix.NUD_NOARP {
			mac = e.HardwareAddr.String()
		}
	}
	return append(lines, fmt.Sprintf("tap %s %s %d", bridges[a.MasterIndex], mac, pid)), nil
}

// tapHolders are the processes that have TAPs open, by the TAPs' names.
func tapHolders() map[string]int {
	open := map[string]int{}
	for _, p := range ProcessesWhere(func(p Process, _, _ string) bool { return strings.Contains(p.Command, "qemu") }) {
		infos, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fdinfo/*", p.PID))
		for _, path := range infos {
			b, _ := os.ReadFile(path) // or it is closed
			if _, name, ok := strings.Cut(string(b), "iff:\t"); ok {
				name, _, _ = strings.Cut(name, "\n")
				open[name] = p.PID
			}
		}
	}
	return open
}

// portLines are those of the firewall.
func (h *House) portLines() (lines []string, err error) {
	c, err := nftables.New()
	if err != nil {
		return nil, err
	}
	table := &nftables.Table{Family: nftables.TableFamilyINet, Name: "cradle-" + h.tag()}
	for name, address := range map[string]int{"ports4": 4, "ports6": 16, "anyports4": 0, "anyports6": 0} {
		elements, err := c.GetSetElements(&nftables.Set{Table: table, Name: name})
		if errors.Is(err, unix.ENOENT) {
			return nil, nil // no table: no endpoints
		}
		if err != nil {
			return nil, fmt.Errorf("list %s of %s: %w", name, table.Name, err)
		}
		for _, e := range elements {
			guest := len(e.Val) - 4
			if len(e.Key) != 8+address || guest != 4 && guest != 16 {
				return nil, fmt.Errorf("%s has the element %x: %x", name, e.Key, e.Val)
			}
			to, _ := netip.AddrFromSlice(e.Val[:guest])
			host := "*"
			if a, ok := netip.AddrFromSlice(e.Key[4 : 4+address]); ok {
				host = a.String()
			}
			protocol := map[byte]string{unix.IPPROTO_TCP: "tcp", unix.IPPROTO_UDP: "udp"}[e.Key[0]]
			lines = append(lines, fmt.Sprintf("forward %s %s %d %s", protocol, host, port(e.Key[4+address:]), netip.AddrPortFrom(to, port(e.Val[guest:]))))
		}
	}
	return lines, nil
}

func port(b []byte) uint16 { return uint16(b[0])<<8 | uint16(b[1]) }

// listening are the sockets of a process that wait for whoever comes.
func listening(pid int) (lines []string, err error) {
	own := map[string]bool{}
	fds, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	for _, fd := range fds {
		to, _ := os.Readlink(fd)
		if inode, ok := strings.CutPrefix(to, "socket:["); ok {
			own[strings.TrimSuffix(inode, "]")] = true
		}
	}
	for _, table := range []string{"tcp", "tcp6", "udp", "udp6"} {
		b, err := os.ReadFile("/proc/net/" + table)
		if err != nil {
			continue // no IPv6
		}
		for _, line := range strings.Split(string(b), "\n")[1:] {
			f := strings.Fields(line) // number, local, remote, state, …, the ninth is the inode
			if len(f) < 10 || !own[f[9]] || !strings.HasSuffix(f[2], ":0000") {
				continue
			}
			at, err := procAddress(f[1])
			if err != nil {
				return nil, err
			}
			lines = append(lines, "listen "+table[:3]+" "+at.String())
		}
	}
	return lines, nil
}

// procAddress reads an address as /proc/net has it: words of four bytes in the machine's order, which is taken to be little
// endian, then the port.
func procAddress(text string) (netip.AddrPort, error) {
	var port uint16
	var words [4]uint32
	hex, rest, _ := strings.Cut(text, ":")
	_, err := fmt.Sscanf(rest, "%04X", &port)
	b := []byte{}
	for i := 0; i+8 <= len(hex) && i < 32; i += 8 {
		_, e := fmt.Sscanf(hex[i:i+8], "%08X", &words[i/8])
		err = cmp.Or(err, e)
		w := words[i/8]
		b = append(b, byte(w), byte(w>>8), byte(w>>16), byte(w>>24))
	}
	a, ok := netip.AddrFromSlice(b)
	if err != nil || !ok {
		return netip.AddrPort{}, fmt.Errorf("/proc/net has the address %q", text)
	}
	return netip.AddrPortFrom(a, port), nil
}
