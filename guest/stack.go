package guest

import (
	"strconv"
	"strings"

	"github.com/cradlevm/cradle/api"
	"golang.org/x/sys/unix"
)

// stack shows what a container's root file system is stacked from: the upper directory, and the layers merged
// without it. They are mounted again for it, on a thread of its own; the kernel shares all but the mount points, and
// a container that nobody asks for its changes has no part of it.
type stack struct {
	home         int // the agent's mount namespace
	thread       *thread
	upper, lower int
}

func (c *container) stack() (*stack, error) {
	r := &c.req.Rootfs
	if r.Upper == nil {
		return nil, api.Errorf(api.CodeUnsupported, "the changes of a container that keeps them in memory are not known")
	}
	nodes := c.nodes[:len(r.Layers)+1]
	s := &stack{home: c.agent.mountNS, thread: newThread(), upper: -1, lower: -1}
	if err := s.thread.do(func() error { return s.mount(r, nodes) }); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

// mount runs on the stack's thread.
func (s *stack) mount(r *api.Rootfs, nodes []string) error {
	if err := enterNamespaces(); err != nil {
		return err
	}
	if err := unix.Mount("stage", stage, "tmpfs", unix.MS_NOSUID, "mode=700"); err != nil {
		return err
	}
	if err := unix.Chdir(stage); err != nil {
		return err
	}
	var order []string
	for i, l := range r.Layers {
		dir := strconv.Itoa(i)
		if err := mountDisk(nodes[i], dir, l, unix.MS_RDONLY); err != nil {
			return err
		}
		order = append([]string{dir}, order...)
	}
	if err := mountDisk(nodes[len(nodes)-1], "u", *r.Upper, 0); err != nil {
		return err
	}
	lower := "0"
	if len(order) > 1 {
		lower = "root"
		if err := unix.Mkdir(lower, 0o755); err != nil {
			return err
		}
		if err := unix.Mount("overlay", lower, "overlay", unix.MS_RDONLY, "lowerdir="+strings.Join(order, ":")); err != nil {
			return api.Errorf(api.CodeInternal, "stack %d layers: %w", len(order), err)
		}
	}
	var err error
	if s.lower, err = unix.Open(lower, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
		return err
	}
	s.upper, err = unix.Open("u/upper", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	return err
}

func (s *stack) close() {
	for _, fd := range []int{s.upper, s.lower} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
	s.thread.leave(s.home)
}
