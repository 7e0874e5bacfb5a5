package guest

import (
	"sync"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// users remembers what a container's user was resolved to the last time: nearly all of its processes have the same one. The
// calling thread's root is always the container's, and the arguments but for the user are the same each time.
type users struct {
	mu            sync.Mutex
	user          string
	passwd, group fileVersion
	account       *account // nil: none is remembered
}

// resolve is resolveUser for as long as the files are not what they were.
func (u *users) resolve(user string, extra []string, p *specs.User) (*account, error) {
	if user == "" {
		return resolveUser(user, extra, p)
	}
	// Before the files are read: one that changes meanwhile has another version the next time.
	passwd, passwdKnown := versionOf("/etc/passwd")
	group, groupKnown := versionOf("/etc/group")
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.account != nil && u.user == user && u.passwd == passwd && u.group == group {
		return u.account, nil
	}
	a, err := resolveUser(user, extra, p)
	u.account = nil
	if err == nil && passwdKnown && groupKnown {
		u.user, u.passwd, u.group, u.account = user, passwd, group, a
	}
	return a, err
}

// fileVersion changes with each change of a file; the zero value is that of one that is not there.
type fileVersion struct {
	device, inode uint64
	size          int64
	written       unix.Timespec
	changed       unix.Timespec // nobody in a container can set it
}

// versionAge is how old the last change of a file must be for the next one to have another time, in seconds: the kernel's clock
// has ticks.
const versionAge = 2

// versionOf is the version of a file, and whether another change would be another version.
func versionOf(path string) (v fileVersion, known bool) {
	var st unix.Stat_t
	switch err := unix.Stat(path, &st); {
	case err == unix.ENOENT:
		return v, true
	case err != nil:
		return v, false
	}
	age := time.Now().Unix() - st.Ctim.Sec
	return fileVersion{st.Dev, st.Ino, st.Size, st.Mtim, st.Ctim}, age > versionAge
}
