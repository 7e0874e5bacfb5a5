package guest

import (
	"encoding/hex"
	"maps"
	"os"
	"regexp"

	"github.com/cradlevm/cradle/api"
	"golang.org/x/sys/unix"
)

// bootIDPath is where the kernel shows the id of its boot; it draws one at the first reading and then keeps it.
const bootIDPath = "/proc/sys/kernel/random/boot_id"

var uuidPattern = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)

// identify makes a restored container another one.
func (a *Agent) identify(r *api.IdentifyRequest) (any, error) {
	if err := checkIdentity(r); err != nil {
		return nil, err
	}
	c, err := a.container(r.ID)
	if err != nil {
		return nil, err
	}
	first, err := c.process("")
	if err != nil {
		return nil, err
	}
	if !first.running() {
		return nil, api.Errorf(api.CodeFailedPrecondition, "the container's first process has ended")
	}
	c.dropExecs()
	if r.NewID != "" && r.NewID != r.ID {
		if err := a.rename(c, r.NewID); err != nil {
			return nil, err
		}
	}
	if err := c.given.rewrite(r.Files); err != nil {
		return nil, err
	}
	if r.Env != nil {
		c.mu.Lock()
		c.env = r.Env
		c.mu.Unlock()
	}
	covers := map[string]string{}
	if r.BootID != "" {
		covers[bootIDPath] = r.BootID
	}
	if r.MachineID != "" {
		covers["/etc/machine-id"] = r.MachineID
	}
	for target, text := range covers {
		if err := c.cover(target, text+"\n"); err != nil {
			return nil, err
		}
	}
	if err := c.thread.do(func() error { return setNames(r.Hostname, "") }); err != nil {
		return nil, err
	}
	return api.IdentifyResult{OutputEnd: first.journal.length()}, nil
}

func checkIdentity(r *api.IdentifyRequest) error {
	switch {
	case r.NewID != "" && !validID(r.NewID):
		return api.Errorf(api.CodeInvalid, "container id %.40q", r.NewID)
	case len(r.Hostname) > 64:
		return api.Errorf(api.CodeInvalid, "hostname of %d bytes", len(r.Hostname))
	case r.BootID != "" && !uuidPattern.MatchString(r.BootID):
		return api.Errorf(api.CodeInvalid, "boot id %.40q", r.BootID)
	}
	if b, err := hex.DecodeString(r.MachineID); err != nil || (r.MachineID != "" && len(b) != 16) {
		return api.Errorf(api.CodeInvalid, "machine id is not 32 hex digits")
	}
	return nil
}

// rename makes the agent know the container by another id. Its cgroup keeps the name it was made with, which nothing in
// the container sees.
func (a *Agent) rename(c *container, id string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.containers[id] != nil {
		return api.Errorf(api.CodeExists, "container %s exists", id)
	}
	maps.DeleteFunc(a.containers, func(_ string, other *container) bool { return other == c })
	a.containers[id] = c
	return nil
}

// dropExecs kills and forgets all execs. A process that stands still in a frozen cgroup dies of SIGKILL all the same.
func (c *container) dropExecs() {
	c.mu.Lock()
	var ids []string
	for id, p := range c.execs {
		if p != nil {
			ids = append(ids, id)
		}
	}
	c.mu.Unlock()
	for _, id := range ids {
		c.deleteExec(id) // one that is gone already was not to be killed any more
	}
}

// cover mounts a read-only file with this text over one that the container has. What is not there, or is not a plain
// file, needs none.
func (c *container) cover(target, text string) error {
	source, err := os.CreateTemp(runDir, "cover-")
	if err != nil {
		return err
	}
	defer os.Remove(source.Name()) // the mount keeps the file
	defer source.Close()
	if _, err := source.WriteString(text); err != nil {
		return err
	}
	if err := source.Chmod(0o444); err != nil {
		return err
	}
	tree, err := openTree(source.Name())
	if err != nil {
		return err
	}
	defer unix.Close(tree)
	return c.thread.do(func() error {
		how := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS}
		at, err := unix.Openat2(unix.AT_FDCWD, target, &how)
		if err != nil {
			return nil
		}
		defer unix.Close(at)
		var st unix.Stat_t
		if err := unix.Fstat(at, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
			return err
		}
		return unix.MoveMount(tree, "", at, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
	})
}
