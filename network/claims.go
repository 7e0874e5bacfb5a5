package network

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// claimsDir is where the daemons of a host that are root tell one another of their networks. It goes when the host is started
// anew, and so do their bridges; each daemon is there again when it has opened its networks.
const claimsDir = "/run/cradle-networks"

// claims keeps what several daemons pick from the same pools apart, also the subnets of those that are idle and have nothing on
// the host. Each has a symbolic link to its state, in which its subnets are; the link's name begins with the number of its network
// namespace. Who picks a subnet, or makes the bridge of one again, holds the lock meanwhile.
type claims struct {
	dir   string
	link  string // the name of ours
	state string // what it leads to
	log   *slog.Logger
}

func newClaims(dir, state string, log *slog.Logger) (*claims, error) {
	var namespace unix.Stat_t
	if err := unix.Stat("/proc/self/ns/net", &namespace); err != nil {
		return nil, fmt.Errorf("look at the network namespace: %w", err)
	}
	hash := sha256.Sum256([]byte(state))
	return &claims{dir: dir, link: fmt.Sprintf("%d-%x", namespace.Ino, hash[:8]), state: state, log: log}, nil
}

// enter makes ours known and locks all, until release is called. A lock is held for as long as a bridge takes to be made: who
// cannot have it for lockLimit is told so.
func (c *claims) enter() (release func(), err error) {
	fail := func(err error) (func(), error) {
		return nil, fmt.Errorf("agree on subnets with this host's other daemons: %w", err)
	}
	if err := os.MkdirAll(c.dir, 0o700); err != nil {
		return fail(err)
	}
	f, err := os.OpenFile(filepath.Join(c.dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fail(err)
	}
	if err := flock(f); err != nil {
		return fail(errors.Join(err, f.Close()))
	}
	if err := os.Symlink(c.state, filepath.Join(c.dir, c.link)); err != nil && !errors.Is(err, fs.ErrExist) {
		return fail(errors.Join(err, f.Close()))
	}
	return func() { f.Close() }, nil
}

func flock(f *os.File) error {
	const lockLimit = 30 * time.Second
	ctx, cancel := context.WithTimeout(context.Background(), lockLimit)
	defer cancel()
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return os.NewSyscallError("flock", err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s has been locked for %v", f.Name(), lockLimit)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// leave takes ours away: there are no networks any more.
func (c *claims) leave() error {
	if err := os.Remove(filepath.Join(c.dir, c.link)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("give subnets back: %w", err)
	}
	return nil
}

// others are the networks of the other daemons in this namespace. Who calls holds the lock. Those whose state is gone are
// forgotten.
func (c *claims) others() (all []Network, err error) {
	entries, err := os.ReadDir(c.dir)
	if err != nil {
		return nil, fmt.Errorf("look for other daemons' subnets: %w", err)
	}
	namespace, _, _ := strings.Cut(c.link, "-")
	for _, e := range entries {
		path := filepath.Join(c.dir, e.Name())
		state, err := os.Readlink(path)
		if err != nil || e.Name() == c.link {
			continue // the lock, or ourselves
		}
		if _, err := os.Stat(filepath.Join(state, networksName)); errors.Is(err, fs.ErrNotExist) {
			if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return nil, fmt.Errorf("forget a daemon that is gone: %w", err)
			}
			continue
		}
		if owner, _, _ := strings.Cut(e.Name(), "-"); owner != namespace {
			continue
		}
		f, err := (&store{state}).networks()
		if err != nil { // of a version that is not ours; when it is there, the host's addresses tell of it
			c.log.Warn("another daemon's subnets are not known", "state", state, "error", err)
			continue
		}
		all = append(all, f.Networks...)
	}
	return all, nil
}
