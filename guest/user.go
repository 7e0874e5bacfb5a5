package guest

import (
	"bytes"
	"slices"
	"strconv"
	"strings"

	"github.com/cradlevm/cradle/api"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// maxUserFile bounds what is read of an image's passwd and group files.
const maxUserFile = 8 << 20

// account is a user as a process runs with it.
type account struct {
	uid, gid uint32
	groups   []uint32
	home     string // empty: no passwd entry
}

// resolveUser works out docker's user[:group] against the passwd and group files of the calling thread's root. An
// empty user means the spec's own numbers.
func resolveUser(user string, extra []string, p *specs.User) (*account, error) {
	a := &account{uid: p.UID, gid: p.GID, groups: slices.Clone(p.AdditionalGids)}
	passwd, err := readImageFile("/etc/passwd")
	if err != nil {
		return nil, err
	}
	if user == "" && len(extra) == 0 {
		if e := findUser(passwd, "", p.UID, true); e != nil {
			a.home = e.home
		}
		return a.joined(), nil
	}
	group, err := readImageFile("/etc/group")
	if err != nil {
		return nil, err
	}
	if user != "" {
		if a, err = lookupUser(user, passwd, group); err != nil {
			return nil, err
		}
	}
	for _, g := range extra {
		gid, err := lookupGroup(g, group)
		if err != nil {
			return nil, err
		}
		a.groups = append(a.groups, gid)
	}
	return a.joined(), nil
}

// joined makes the group itself one of the supplementary groups, as docker does: a file closed to the group stays
// closed to a process that changes its group id.
func (a *account) joined() *account {
	a.groups = append(a.groups, a.gid)
	slices.Sort(a.groups)
	a.groups = slices.Compact(a.groups)
	return a
}

// lookupUser resolves user[:group]. Without a group the user's own is taken, and the groups that list the user as a
// member; a number that no passwd entry knows runs with group 0, as docker has it.
func lookupUser(user string, passwd, group []byte) (*account, error) {
	name, groupName, _ := strings.Cut(user, ":")
	a := &account{}
	number, isNumber, err := parseID(name)
	if err != nil {
		return nil, err
	}
	var e *passwdEntry
	if name != "" {
		e = findUser(passwd, name, number, isNumber)
	} else {
		e = findUser(passwd, "", 0, true)
	}
	switch {
	case e != nil:
		a.uid, a.gid, a.home = e.uid, e.gid, e.home
	case isNumber:
		a.uid = number
	case name != "":
		return nil, api.Errorf(api.CodeInvalid, "unable to find user %s: no matching entries in passwd file", name)
	}
	if groupName != "" {
		a.gid, err = lookupGroup(groupName, group)
		return a, err
	}
	if e != nil {
		a.groups = memberships(group, e.name)
	}
	return a, nil
}

func lookupGroup(name string, group []byte) (uint32, error) {
	number, isNumber, err := parseID(name)
	if err != nil {
		return 0, err
	}
	found, gid := false, uint32(0)
	eachLine(group, 4, func(f [][]byte) bool {
		id, err := strconv.ParseUint(string(f[2]), 10, 31)
		if err == nil && (string(f[0]) == name || isNumber && uint32(id) == number) {
			found, gid = true, uint32(id)
		}
		return !found
	})
	if !found && isNumber {
		return number, nil
	}
	if !found {
		return 0, api.Errorf(api.CodeInvalid, "unable to find group %s: no matching entries in group file", name)
	}
	return gid, nil
}

// parseID reads a numeric id; one that is a number but out of range is an error, as it can be no name either.
func parseID(s string) (id uint32, ok bool, err error) {
	if s == "" || strings.Trim(s, "0123456789") != "" {
		return 0, false, nil
	}
	n, err := strconv.ParseUint(s, 10, 31)
	if err != nil {
		return 0, false, api.Errorf(api.CodeInvalid, "uids and gids must be in range 0-2147483647")
	}
	return uint32(n), true, nil
}

type passwdEntry struct {
	name, home string
	uid, gid   uint32
}

// findUser returns the first entry with the name, or with the number when byNumber.
func findUser(passwd []byte, name string, number uint32, byNumber bool) (found *passwdEntry) {
	eachLine(passwd, 6, func(f [][]byte) bool {
		uid, err1 := strconv.ParseUint(string(f[2]), 10, 31)
		gid, err2 := strconv.ParseUint(string(f[3]), 10, 31)
		if err1 != nil || err2 != nil {
			return true
		}
		if name != "" && string(f[0]) == name || byNumber && uint32(uid) == number {
			found = &passwdEntry{string(f[0]), string(f[5]), uint32(uid), uint32(gid)}
		}
		return found == nil
	})
	return found
}

// memberships lists the groups that name the user.
func memberships(group []byte, user string) (gids []uint32) {
	eachLine(group, 4, func(f [][]byte) bool {
		gid, err := strconv.ParseUint(string(f[2]), 10, 31)
		if err != nil {
			return true
		}
		for member := range bytes.SplitSeq(f[3], []byte{','}) {
			if string(bytes.TrimSpace(member)) == user {
				gids = append(gids, uint32(gid))
				break
			}
		}
		return len(gids) < 65536 // the kernel's limit
	})
	return gids
}

// eachLine calls visit with the fields of each line that has at least n, until it returns false.
func eachLine(data []byte, n int, visit func(fields [][]byte) bool) {
	for line := range bytes.Lines(data) {
		line = bytes.TrimSpace(line)
		if len(line) == 0 || line[0] == '#' {
			continue
		}
		if f := bytes.SplitN(line, []byte{':'}, n+1); len(f) >= n && !visit(f) {
			return
		}
	}
}

// readImageFile reads a regular file of the image; a missing one is empty. A pipe, a device or a file without end in
// its place does not hold the agent up.
func readImageFile(p string) ([]byte, error) {
	fd, err := unix.Open(p, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err == unix.ENOENT || err == unix.ENOTDIR || err == unix.ELOOP {
		return nil, nil
	}
	if err != nil {
		return nil, api.Errorf(api.CodeInvalid, "open %s: %w", p, err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Size > maxUserFile {
		return nil, api.Errorf(api.CodeInvalid, "%s is not a regular file of at most %d bytes", p, maxUserFile)
	}
	buf := make([]byte, min(st.Size, maxUserFile)+512)
	for n := 0; ; {
		got, err := unix.Read(fd, buf[n:])
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, api.Errorf(api.CodeInvalid, "read %s: %w", p, err)
		}
		if n += got; got == 0 || n == len(buf) {
			return buf[:n], nil
		}
	}
}
