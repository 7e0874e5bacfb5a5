// Package pod puts a virtual machine behind the interfaces of a network namespace that somebody else has furnished, as a CNI
// plugin does for a pod: it joins each one to a TAP, frame by frame.
//
// # What happens to the namespace
//
// Every frame that arrives on an interface leaves by its TAP, and every frame that the guest sends, as far as the guard on the TAP
// (package bpf) lets it pass, leaves by the interface. The interface keeps its addresses and routes: the plugins that made them look
// for them when they check and when they clean up. Nothing in the namespace answers for them any more, since its own network
// stack sees no frame.
//
// # State
//
// There is none but in the namespace: a TAP is called cradle and the index of its interface, the programs are on the
// devices. So Attach and Detach may be called again, by any process, after a crash at any point. A namespace that is
// deleted takes everything with it.
package pod

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/cradlevm/cradle/api"
	"github.com/cradlevm/cradle/network/bpf"
	"github.com/cradlevm/cradle/network/dump"
)

// ErrUnsupported is a namespace, or an interface of it, that a virtual machine cannot be put behind. To be found with errors.Is.
var ErrUnsupported = errors.New("this network cannot be a virtual machine's")

// Interface is an interface of the namespace and its guest's side.
type Interface struct {
	TAP   string        // in the namespace, for vm.NIC
	Guest api.Interface // what the guest is to be told; its Slot is the interface's place in what Attach returns
}

// tapPrefix and an interface's index are the name of its TAP.
const tapPrefix = "cradle"

// Attach joins all interfaces of the namespace at path that are up and have addresses to TAPs. On error nothing of it is left. It may
// be called again: what is there already stays, and goes on to pass frames meanwhile. It takes root, in the namespace's
// own user namespace. Errors: ErrUnsupported, with what is wrong.
func Attach(ctx context.Context, path string) ([]Interface, error) {
	var made []Interface
	err := within(path, func() error {
		if err := ctx.Err(); err != nil {
			return err
		}
		found, err := describe()
		if err != nil {
			return err
		}
		if err := join(found); err != nil {
			return errors.Join(err, separate())
		}
		for _, f := range found {
			made = append(made, Interface{TAP: tapOf(f.link), Guest: f.guest})
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("put a virtual machine behind network namespace %s: %w", path, err)
	}
	return made, nil
}

// Detach undoes Attach: the interfaces are their namespace's own again. The virtual machine must have gone. Idempotent, also
// when the namespace is gone.
func Detach(ctx context.Context, path string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	err := within(path, separate)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, errNoNamespace) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("free network namespace %s: %w", path, err)
	}
	return nil
}

func tapOf(l netlink.Link) string { return tapPrefix + strconv.Itoa(l.Attrs().Index) }

// isTAP tells whether an interface is a TAP of ours.
func isTAP(l netlink.Link) bool {
	index, ok := strings.CutPrefix(l.Attrs().Name, tapPrefix)
	_, err := strconv.Atoi(index)
	return ok && err == nil && l.Type() == "tuntap"
}

// join makes the TAPs and what passes frames. The interfaces' own frames are taken last.
func join(found []found) error {
	var taps []netlink.Link
	var indexes []int
	for _, f := range found {
		tap, err := ensureTAP(tapOf(f.link))
		if err != nil {
			return fmt.Errorf("make TAP for %s: %w", f.guest.Name, err)
		}
		taps, indexes = append(taps, tap), append(indexes, tap.Attrs().Index)
	}
	guards, err := bpf.AdoptFew(indexes)
	if err != nil {
		return err
	}
	defer guards.Close() // the devices keep theirs
	for i, f := range found {
		index, nic := indexes[i], f.link.Attrs().Index
		steps := []func() error{
			func() error { return guards.Guard(index) },
			func() error { return guards.Assign(index, f.may) },
			func() error { return bpf.Redirect(index, nic) },
			func() error { return silence(taps[i].Attrs().Name) },
			func() error { return netlink.LinkSetMTU(taps[i], f.link.Attrs().MTU) },
			func() error { return netlink.LinkSetUp(taps[i]) },
			func() error { return bpf.Redirect(nic, index) },
		}
		for _, step := range steps {
			if err := step(); err != nil {
				return fmt.Errorf("join %s and its TAP: %w", f.guest.Name, err)
			}
		}
	}
	return nil
}

// ensureTAP makes a persistent TAP, or finds it.
func ensureTAP(name string) (netlink.Link, error) {
	link, err := netlink.LinkByName(name)
	if err == nil && !isTAP(link) {
		return nil, fmt.Errorf("%w: interface %s is there and is no TAP", ErrUnsupported, name)
	}
	if err == nil || !errors.As(err, new(netlink.LinkNotFoundError)) {
		return link, err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	tap := &netlink.Tuntap{LinkAttrs: attrs, Mode: netlink.TUNTAP_MODE_TAP, Queues: 1,
		Flags: netlink.TUNTAP_NO_PI | netlink.TUNTAP_VNET_HDR | netlink.TUNTAP_ONE_QUEUE}
	if err := netlink.LinkAdd(tap); err != nil {
		return nil, err
	}
	for _, queue := range tap.Fds { // it is persistent, and its monitor's
		queue.Close()
	}
	return netlink.LinkByName(name)
}

// silence keeps the namespace's own stack from speaking IPv6 on a TAP.
func silence(name string) error {
	err := os.WriteFile("/proc/sys/net/ipv6/conf/"+name+"/disable_ipv6", []byte("1"), 0)
	if errors.Is(err, os.ErrNotExist) { // no IPv6
		return nil
	}
	return err
}

// separate removes the redirections and the TAPs, whatever is there of them.
func separate() error {
	links, err := dump.Whole(netlink.LinkList)
	if err != nil {
		return fmt.Errorf("list interfaces: %w", err)
	}
	var errs []error
	for _, l := range links {
		if isTAP(l) || l.Attrs().Flags&net.FlagLoopback != 0 {
			continue
		}
		if err := bpf.Unredirect(l.Attrs().Index); err != nil {
			errs = append(errs, fmt.Errorf("give %s its frames back: %w", l.Attrs().Name, err))
		}
	}
	for _, l := range links {
		if isTAP(l) {
			if err := netlink.LinkDel(l); err != nil && !errors.Is(err, unix.ENODEV) {
				errs = append(errs, fmt.Errorf("remove TAP %s: %w", l.Attrs().Name, err))
			}
		}
	}
	return errors.Join(errs...)
}

var errNoNamespace = errors.New("not a network namespace")

// within calls f in the network namespace at path, on a thread that nobody else gets.
func within(path string, f func() error) error {
	ns, err := os.Open(path)
	if err != nil {
		return err
	}
	defer ns.Close()
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(ns.Fd()), &fs); err != nil {
		return err
	}
	if fs.Type != unix.NSFS_MAGIC { // what is left of a mounted one
		return errNoNamespace
	}
	var there, here unix.Stat_t
	if err := errors.Join(unix.Fstat(int(ns.Fd()), &there), unix.Stat("/proc/thread-self/ns/net", &here)); err != nil {
		return err
	}
	if there.Dev == here.Dev && there.Ino == here.Ino {
		return fmt.Errorf("%w: it is the host's own", ErrUnsupported)
	}
	return onThread(func() error {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("%w: %w", errNoNamespace, err)
		}
		return f()
	})
}

// onThread calls f on a thread that ends afterwards. That is never the process's first one, which would stay, and whose
// namespaces are what others see as the process's.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			done <- onThread(f) // elsewhere, this one being taken
			runtime.UnlockOSThread()
			return
		}
		done <- f()
	}()
	return <-done
}
