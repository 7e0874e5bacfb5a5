// Command hostile is what a hostile guest runs in the end-to-end tests: it sends raw frames through the interface that the
// container was given. It is no part of cradle.
package main

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cradlevm/cradle/network/nettest"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "hostile:", err)
		os.Exit(1)
	}
}

// run sends what its first argument says, in the name of the identities in the second, a JSON list of oneself and a victim, and
// prints how many frames the guest's kernel took.
//
//	forgeries SELF-AND-VICTIM GATEWAY   nettest's forgeries, each once
//	mutations SELF-AND-VICTIM N         so many mutations of honest frames
//	flood SELF-AND-VICTIM SECONDS       forged frames, as fast as they go
//	checksum SELF-AND-VICTIM            honest frames, with the kernel asked to write a checksum over their sender
func run(args []string) error {
	if len(args) < 2 {
		return fmt.Errorf("what, and as whom?")
	}
	var who []nettest.Identity
	if err := json.Unmarshal([]byte(args[1]), &who); err != nil || len(who) != 2 {
		return fmt.Errorf("as whom? %v", err)
	}
	self, victim := who[0], who[1]
	s, err := open("eth0")
	if err != nil {
		return err
	}
	number := 0
	if len(args) == 3 {
		number, _ = strconv.Atoi(args[2]) // 0 for what is none: nothing is sent
	}
	switch {
	case args[0] == "forgeries" && len(args) == 3:
		gate, err := netip.ParseAddr(args[2])
		if err != nil {
			return err
		}
		for _, f := range nettest.Forgeries(self, victim, gate) {
			s.count(f.Frame)
		}
	case args[0] == "mutations" && len(args) == 3:
		r := rand.New(rand.NewPCG(5, 2026))
		seeds := nettest.Honest(self, victim)
		for i := range number {
			s.count(nettest.Mutate(r, seeds[i%len(seeds)]))
		}
	case args[0] == "flood" && len(args) == 3:
		forged := nettest.Forgeries(self, victim, victim.IPv4)
		for end := time.Now().Add(time.Duration(number) * time.Second); time.Now().Before(end); {
			for _, f := range forged {
				s.count(f.Frame)
			}
		}
	case args[0] == "checksum" && len(args) == 2:
		return s.checksums(self, victim)
	default:
		return fmt.Errorf("unknown: %q", args)
	}
	fmt.Println(s.sent)
	return nil
}

// socket sends frames as they are.
type socket struct {
	fd, sent int
	to       unix.SockaddrLinklayer
}

func open(device string) (*socket, error) {
	link, err := net.InterfaceByName(device)
	if err != nil {
		return nil, err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0)
	if err != nil {
		return nil, fmt.Errorf("open packet socket: %w", err)
	}
	return &socket{fd: fd, to: unix.SockaddrLinklayer{Ifindex: link.Index}}, nil
}

// send retries while the interface's queue is full.
func (s *socket) send(f []byte) error {
	for {
		err := unix.Sendto(s.fd, f, 0, &s.to)
		if err != unix.ENOBUFS && err != unix.EAGAIN && err != unix.EINTR {
			return err
		}
		time.Sleep(time.Millisecond)
	}
}

// count sends what the kernel may refuse: frames shorter than a header.
func (s *socket) count(f []byte) {
	if s.send(f) == nil {
		s.sent++
	}
}

// checksums has the kernel write checksums over what is checked, and over nothing.
func (s *socket) checksums(self, victim nettest.Identity) error {
	if err := unix.SetsockoptInt(s.fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1); err != nil {
		return fmt.Errorf("send headers of virtio: %w", err)
	}
	honest := nettest.Honest(self, victim)
	for _, c := range []struct {
		frame         []byte
		start, offset uint16
	}{
		{honest[0], 14, 12}, {honest[0], 20, 8}, {honest[0], 14, 8}, {honest[0], 34, 2}, {honest[2], 14, 14}, {honest[4], 14, 20}, {honest[0], 0, 6},
	} {
		header := make([]byte, 10)
		header[0] = 1 // VIRTIO_NET_HDR_F_NEEDS_CSUM
		binary.LittleEndian.PutUint16(header[6:], c.start)
		binary.LittleEndian.PutUint16(header[8:], c.offset)
		s.count(append(header, c.frame...))
	}
	fmt.Println(s.sent)
	return nil
}
