package erofs

import (
	"path"
	"strings"
)

// inode is one file of any type. Hard links are several names of one.
type inode struct {
	mode     uint16 // type and permissions
	nsec     uint32
	mtime    int64
	uid, gid uint32
	nlink    uint32
	rdev     uint32
	addr     uint32 // first block of the data that is not inline
	size     int64
	nid      uint64 // 0: not placed yet
	xattrs   *xattrSet
	target   string      // of a symlink
	sparse   *sparseFile // a regular file in pieces
	dir      *dir        // a directory
}

type dir struct {
	parent   *inode
	children map[string]*inode
	// hidden are names that the layer whites out. A whiteout is about the lower layers, never about this layer's own
	// file of that name, in whatever order the two come.
	hidden map[string]struct{}
	opaque bool
	sorted []dirent // in directory order; made once the tree is complete
}

func (i *inode) is(fmt uint16) bool { return i.mode&modeFmt == fmt }

const (
	maxPath = 4096 // PATH_MAX
	// maxLinks is the kernel's MAXSYMLINKS: a path with more symlinks in it opens nowhere.
	maxLinks = 40
	// maxLinkBytes bounds the work that symlinked parents cause in one layer.
	maxLinkBytes = 1 << 28
)

// tree is the layer's file tree as it grows.
type tree struct {
	root      *inode
	count     int // inodes made, replaced ones included
	max       int
	linkBytes int

	// The parent of the last entry, for the next one is mostly its sibling; forgotten when anything is removed.
	lastPath string
	lastDir  *inode

	slab []inode // inodes are made by the hundred
}

func newTree(max int) *tree {
	t := &tree{max: max}
	t.root = &inode{mode: modeDir | 0o755, nlink: 2, dir: &dir{}}
	t.root.dir.parent = t.root
	t.count = 1
	return t
}

func (t *tree) newInode(mode uint16) (*inode, error) {
	if t.count++; t.count > t.max {
		return nil, invalidf("more than %d files", t.max)
	}
	if len(t.slab) == 0 {
		t.slab = make([]inode, 256)
	}
	i := &t.slab[0]
	t.slab = t.slab[1:]
	i.mode = mode
	if i.is(modeDir) {
		i.dir = &dir{}
	}
	return i, nil
}

// cleanName makes a name of the tar relative to the root, lexically as docker and containerd do: "" is the root.
func cleanName(name string) (string, error) {
	if strings.HasPrefix(name, "/") {
		name = path.Clean(name)[1:]
	} else if name = path.Clean(name); name == "." {
		name = ""
	}
	if name == ".." || strings.HasPrefix(name, "../") {
		return "", invalidf("path traversal")
	}
	if len(name) > maxPath {
		return "", invalidf("path is longer than %d bytes", maxPath)
	}
	return name, nil
}

// splitName returns the parent's name and the last component.
func splitName(name string) (parent, base string) {
	i := strings.LastIndexByte(name, '/')
	if i < 0 {
		return "", name
	}
	return name[:i], name[i+1:]
}

// mkdirs finds the directory of that name and makes what is missing of it.
func (t *tree) mkdirs(name string) (*inode, error) {
	if t.lastDir != nil && t.lastPath == name {
		return t.lastDir, nil
	}
	d, err := t.walk(name, true)
	if err == nil {
		t.lastPath, t.lastDir = name, d
	}
	return d, err
}

// walk finds a directory. Symlinks among the components are followed inside the tree, as containerd's fs.RootPath
// does; nil when something is missing and not to be made.
func (t *tree) walk(name string, create bool) (*inode, error) {
	at, links := t.root, 0
	for rest := name; rest != ""; {
		var c string
		c, rest, _ = strings.Cut(rest, "/")
		switch c {
		case "", ".":
			continue
		case "..":
			at = at.dir.parent
			continue
		}
		next := at.dir.children[c]
		if next == nil {
			if !create {
				return nil, nil
			}
			var err error
			if next, err = t.newInode(modeDir | 0o755); err != nil {
				return nil, err
			}
			if err := t.attach(at, c, next); err != nil {
				return nil, err
			}
		}
		switch {
		case next.is(modeDir):
			at = next
		case next.is(modeSymlink):
			links++
			t.linkBytes += len(next.target) + len(rest)
			if links > maxLinks || t.linkBytes > maxLinkBytes {
				return nil, invalidf("too many symlinks in the path")
			}
			if strings.HasPrefix(next.target, "/") {
				at = t.root
			}
			rest = next.target + "/" + rest
		default:
			return nil, invalidf("parent %s is not a directory", quote(c))
		}
	}
	return at, nil
}

// attach gives i the name base in directory d, where there is none of that name.
func (t *tree) attach(d *inode, base string, i *inode) error {
	if len(base) > nameLen {
		return invalidf("a name of %d bytes", len(base))
	}
	if d.dir.children == nil {
		d.dir.children = make(map[string]*inode)
	}
	d.dir.children[strings.Clone(base)] = i // base is mostly a piece of a long path
	if !i.is(modeDir) {
		i.nlink++
		return nil
	}
	i.nlink = 2
	i.dir.parent = d
	d.nlink++
	// A directory in place of a whited out one must not let the lower one's files through.
	_, i.dir.opaque = d.dir.hidden[base]
	return nil
}

// remove takes the name base out of d, with all that is below it.
func (t *tree) remove(d *inode, base string) {
	i := d.dir.children[base]
	if i == nil {
		return
	}
	t.lastDir = nil
	delete(d.dir.children, base)
	if !i.is(modeDir) {
		i.nlink--
		return
	}
	d.nlink--
	if i.dir.opaque {
		d.dir.hide(base)
	}
	for stack := []*inode{i}; len(stack) > 0; {
		last := len(stack) - 1
		gone := stack[last].dir
		stack = stack[:last]
		for _, c := range gone.children {
			if c.nlink--; c.is(modeDir) {
				stack = append(stack, c)
			}
		}
		gone.children = nil
	}
}

// hide whites the name out.
func (d *dir) hide(name string) {
	if d.hidden == nil {
		d.hidden = make(map[string]struct{})
	}
	d.hidden[strings.Clone(name)] = struct{}{}
}
