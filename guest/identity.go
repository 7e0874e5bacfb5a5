package guest

import (
	"encoding/hex"
	"errors"
	"maps"
	"os"
	"regexp"
	"sync"

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
	for target, text := range map[string]string{bootIDPath: r.BootID, "/etc/machine-id": r.MachineID} {
		if text == "" {
			continue
		}
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

// covers are files of the agent's that lie over a container's, by the latter's path. They stay open, to be given other texts: nothing can be
// mounted over one, for it has no name any more.
type covers struct {
	mu   sync.Mutex
	over map[string]*os.File
}

// cover puts a read-only file with this text over one that the container has. What is not there, or is not a plain
// file, needs none.
func (c *container) cover(target, text string) error {
	c.covers.mu.Lock()
	defer c.covers.mu.Unlock()
	at, err := c.openPlain(target)
	if at < 0 {
		return err
	}
	defer unix.Close(at)
	if f := c.covers.over[target]; f != nil && sameFile(at, int(f.Fd())) {
		return overwrite(f, []byte(text))
	}
	f, err := os.CreateTemp(runDir, "cover-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // the mount keeps the file
	err = c.lay(f, text, at)
	if err != nil {
		return errors.Join(err, f.Close())
	}
	if old := c.covers.over[target]; old != nil {
		old.Close()
	}
	if c.covers.over == nil {
		c.covers.over = map[string]*os.File{}
	}
	c.covers.over[target] = f
	return nil
}

// lay mounts a new file with a text at a file of the container's.
func (c *container) lay(f *os.File, text string, at int) error {
	if err := overwrite(f, []byte(text)); err != nil {
		return err
	}
	if err := f.Chmod(0o444); err != nil {
		return err
	}
	tree, err := openTree(f.Name())
	if err != nil {
		return err
	}
	defer unix.Close(tree)
	return c.thread.do(func() error {
		return unix.MoveMount(tree, "", at, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
	})
}

// openPlain finds a plain file of the container's. -1 when there is none.
func (c *container) openPlain(target string) (fd int, err error) {
	fd = -1
	err = c.thread.do(func() error {
		how := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS}
		at, err := unix.Openat2(unix.AT_FDCWD, target, &how)
		if err != nil {
			return nil
		}
		var st unix.Stat_t
		if err := unix.Fstat(at, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
			unix.Close(at)
			return err
		}
		fd = at
		return nil
	})
	return fd, err
}

// sameFile tells whether two descriptors are of one file.
func sameFile(a, b int) bool {
	var x, y unix.Stat_t
	return unix.Fstat(a, &x) == nil && unix.Fstat(b, &y) == nil && x.Dev == y.Dev && x.Ino == y.Ino
}

// overwrite gives a file another text, in place.
func overwrite(f *os.File, text []byte) error {
	if _, err := f.WriteAt(text, 0); err != nil {
		return err
	}
	return f.Truncate(int64(len(text)))
}

// close lets go of the files; the container's mounts keep them.
func (c *covers) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, f := range c.over {
		f.Close()
	}
	c.over = nil
}
