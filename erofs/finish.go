package erofs

import (
	"slices"
	"strings"
)

// finish makes the whiteouts into files and drops what AUFS left behind, then puts the directories in order; it
// returns them, parents first.
func (l *layer) finish() ([]*inode, error) {
	t := l.tree
	for name := range t.root.dir.children {
		if strings.HasPrefix(name, whiteoutMeta) {
			t.remove(t.root, name)
			delete(t.root.dir.hidden, name)
		}
	}
	var dirs []*inode
	for stack := []*inode{t.root}; len(stack) > 0; {
		last := len(stack) - 1
		d := stack[last]
		stack = stack[:last]
		dirs = append(dirs, d)
		if err := l.finishDir(d); err != nil {
			return nil, err
		}
		for k := len(d.dir.sorted) - 1; k >= 0; k-- {
			if e := &d.dir.sorted[k]; e.inode.is(modeDir) && e.name != "." && e.name != ".." {
				stack = append(stack, e.inode)
			}
		}
	}
	return dirs, nil
}

func (l *layer) finishDir(d *inode) error {
	own := d.dir
	if own.opaque {
		if err := l.markOpaque(d); err != nil {
			return err
		}
	}
	for name := range own.hidden {
		if own.children[name] == nil {
			// Device 0/0 is what overlayfs calls a whiteout.
			w, err := l.tree.newInode(modeChar)
			if err != nil {
				return err
			}
			if err := l.tree.attach(d, name, w); err != nil {
				return err
			}
		}
	}
	own.sorted = make([]dirent, 0, len(own.children)+2)
	own.sorted = append(own.sorted, dirent{".", d}, dirent{"..", own.parent})
	for name, c := range own.children {
		own.sorted = append(own.sorted, dirent{name, c})
	}
	slices.SortFunc(own.sorted, func(a, b dirent) int { return strings.Compare(a.name, b.name) })
	own.children, own.hidden = nil, nil
	return nil
}

func (l *layer) markOpaque(d *inode) error {
	list := []xattr{opaque}
	if d.xattrs != nil {
		list = append(list, d.xattrs.list...)
	}
	return l.setXattrs(d, sortXattrs(list))
}
