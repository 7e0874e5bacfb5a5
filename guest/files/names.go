package files

import (
	"bytes"
	"strconv"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// Bounds of what is taken from a container's passwd and group files.
const (
	maxNameFile = 1 << 20 // bytes of a file; what is after is not looked at
	maxNames    = 1 << 14 // of a file
	maxName     = 256     // bytes; a longer one is no name
)

// owners are the names of a container's users and groups by number, as its own passwd and group files have them:
// where docker's archives of a container take them from, for docker looks them up in a process whose root is the
// container's. What is there is the container's word, and is only ever passed on.
type owners struct{ users, groups map[uint32]string }

// ownersOf reads the names. A file that is not there, or no file, has none.
func ownersOf(root int) *owners {
	o := &owners{users: namesIn(readNames(root, "/etc/passwd")), groups: namesIn(readNames(root, "/etc/group"))}
	// Docker asks for the name of the user it is itself before it looks into the container.
	o.users[0] = "root"
	return o
}

// readNames reads a file as far as maxNameFile.
func readNames(root int, p string) []byte {
	fd, err := open(root, p, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY)
	if err != nil {
		return nil
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil
	}
	b := make([]byte, min(max(st.Size, 0), maxNameFile))
	done := 0
	for done < len(b) {
		n, err := unix.Pread(fd, b[done:], int64(done))
		if err == unix.EINTR {
			continue
		}
		if n <= 0 || err != nil {
			break
		}
		done += n
	}
	return b[:done]
}

// namesIn finds the first name of each number in lines of the form name:password:number:….
func namesIn(text []byte) map[uint32]string {
	names := map[uint32]string{}
	for line := range bytes.Lines(text) {
		f := bytes.SplitN(bytes.TrimSpace(line), []byte(":"), 4)
		if len(f) < 4 || len(f[0]) == 0 || len(f[0]) > maxName || !utf8.Valid(f[0]) || bytes.IndexByte(f[0], 0) >= 0 ||
			bytes.IndexByte([]byte("+-#"), f[0][0]) >= 0 {
			continue
		}
		id, err := strconv.ParseUint(string(f[2]), 10, 32)
		if err != nil {
			continue
		}
		if _, ok := names[uint32(id)]; !ok && len(names) < maxNames {
			names[uint32(id)] = string(f[0])
		}
	}
	return names
}
