package files

import (
	"io"
	"path"
	"slices"
	"time"

	"archive/tar"

	"github.com/cradlevm/cradle/api"
	"golang.org/x/sys/unix"
)

// An overlay's upper directory says what changed, in overlayfs's way: a character device 0/0 is the absence of what
// lies below, an attribute makes a directory hide all that lies below it.
const opaqueMark = "trusted.overlay.opaque"

// Changes calls record for each difference between upper, the upper directory of an overlay, and lower, the merged
// view of what lies below it: in the order of paths, a directory before what is in it.
func Changes(upper, lower int, record func(kind byte, p string) error) error {
	d := &differ{visit: func(c *change) error { return record(c.kind, c.path) }}
	return d.directory(upper, lower, top(), false, 0)
}

// Layer writes the changes as a layer of an OCI image. A directory above a change is in it even if unchanged: without
// it the layer would have the directory with nobody's owner and mode.
func Layer(upper, lower int, w io.Writer) error {
	a := newArchiver(w)
	d := &differ{ancestors: true, visit: func(c *change) error { return a.change(c) }}
	if err := d.directory(upper, lower, top(), false, 0); err != nil {
		return err
	}
	return a.tw.Close()
}

// change is one difference. What was deleted has neither descriptor nor st.
type change struct {
	kind byte
	path string
	dir  int // the directory it is in, or itself when it is one
	st   *unix.Stat_t
}

// change writes one difference into a layer.
func (a *archiver) change(c *change) error {
	name := c.path[1:]
	switch {
	case c.kind == api.Deleted:
		dir, base := path.Split(name)
		return a.write(&tar.Header{Typeflag: tar.TypeReg, Name: dir + ".wh." + base, Mode: 0o600, ModTime: time.Unix(0, 0)})
	case c.st.Mode&unix.S_IFMT == unix.S_IFDIR:
		return a.header(c.dir, name+"/", "", c.st)
	}
	return a.entry(c.dir, path.Base(name), name, c.st)
}

// node is a directory on the way to what is compared. It is told of when it has changed itself or when something in
// it makes it part of the changes.
type node struct {
	change
	up   *node
	said bool
	ours bool // made for a mount: only what others put into it makes it a change
}

func top() *node { return &node{change: change{path: "/"}, said: true} }

// differ walks an upper directory.
type differ struct {
	visit     func(*change) error
	ancestors bool // a change is told of with all directories above it
}

// tell reports a change in directory in.
func (d *differ) tell(in *node, c *change) error {
	if d.ancestors || in.ours || c.kind != api.Modified {
		// Docker has the directory of what came or went among the changes, whatever its own times say.
		if err := d.say(in); err != nil {
			return err
		}
	}
	return d.visit(c)
}

func (d *differ) say(n *node) error {
	if n.said {
		return nil
	}
	n.said = true
	if d.ancestors || n.kind == api.Added {
		if err := d.say(n.up); err != nil {
			return err
		}
	}
	return d.visit(&n.change)
}

// directory compares a directory of the upper with the one below it, -1 when there is none. opaque: what is
// below is hidden.
func (d *differ) directory(upper, lower int, n *node, opaque bool, depth int) error {
	if depth > maxDepth {
		return tooDeep(n.path)
	}
	var gone []string
	if opaque && lower >= 0 {
		var err error
		if gone, err = hidden(upper, lower); err != nil {
			return pathError("read", n.path, err)
		}
	}
	err := eachName(upper, func(name string) error {
		for len(gone) > 0 && gone[0] < name {
			if err := d.tell(n, &change{kind: api.Deleted, path: path.Join(n.path, gone[0])}); err != nil {
				return err
			}
			gone = gone[1:]
		}
		return d.entry(upper, lower, n, name, opaque, depth)
	})
	if err != nil {
		return err
	}
	for _, name := range gone {
		if err := d.tell(n, &change{kind: api.Deleted, path: path.Join(n.path, name)}); err != nil {
			return err
		}
	}
	return nil
}

// hidden lists what lower has and upper has not.
func hidden(upper, lower int) (names []string, err error) {
	err = eachName(lower, func(name string) error {
		var st unix.Stat_t
		if unix.Fstatat(upper, name, &st, unix.AT_SYMLINK_NOFOLLOW) == unix.ENOENT {
			names = append(names, name)
		}
		return nil
	})
	slices.Sort(names)
	return names, err
}

func (d *differ) entry(upper, lower int, in *node, name string, opaque bool, depth int) error {
	p := path.Join(in.path, name)
	var st, old unix.Stat_t
	if err := unix.Fstatat(upper, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		if err == unix.ENOENT {
			return nil
		}
		return pathError("lstat", p, err)
	}
	below := lower >= 0 && unix.Fstatat(lower, name, &old, unix.AT_SYMLINK_NOFOLLOW) == nil
	if st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0 {
		if !below {
			return nil
		}
		return d.tell(in, &change{kind: api.Deleted, path: p})
	}
	c := change{kind: api.Added, path: p, dir: upper, st: &st}
	if below {
		c.kind = api.Modified
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		if !below && marked(upper, name) {
			return nil
		}
		return d.tell(in, &c)
	}
	sub, err := openDir(upper, name)
	if err != nil {
		return pathError("open", p, err)
	}
	defer unix.Close(sub)
	subLower := -1
	if below && old.Mode&unix.S_IFMT == unix.S_IFDIR {
		if subLower, err = openDir(lower, name); err != nil {
			return pathError("open", p, err)
		}
		defer unix.Close(subLower)
	}
	c.dir = sub
	n := &node{change: c, up: in, ours: !below && markedFD(sub)}
	opaque = opaque || isOpaque(sub)
	same := subLower >= 0 && st.Mode == old.Mode && st.Uid == old.Uid && st.Gid == old.Gid && st.Mtim == old.Mtim && !opaque
	if !same && !n.ours {
		n.said = true
		if err := d.tell(in, &n.change); err != nil {
			return err
		}
	}
	return d.directory(sub, subLower, n, opaque, depth+1)
}

func isOpaque(fd int) bool {
	var b [4]byte
	n, err := unix.Fgetxattr(fd, opaqueMark, b[:])
	return err == nil && n == 1 && b[0] == 'y'
}

func markedFD(fd int) bool {
	var b [4]byte
	n, err := unix.Fgetxattr(fd, mountMark, b[:])
	return err == nil && n == 1
}

// marked looks at something that is not a directory. Only an empty file can have been made for a mount; a file with
// contents was written by somebody since.
func marked(dir int, name string) bool {
	var st unix.Stat_t
	fd, err := openFile(dir, name)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	return unix.Fstat(fd, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFREG && st.Size == 0 && markedFD(fd)
}
