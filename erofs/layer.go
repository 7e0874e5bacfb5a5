package erofs

import (
	"errors"
	"io"
	"strings"
)

const (
	whiteoutPrefix = ".wh."         // OCI image-spec, layer.md
	whiteoutMeta   = ".wh..wh."     // AUFS's own files, in the root of images of long ago
	whiteoutOpaque = ".wh..wh..opq" // layer.md: "opaque whiteout"
	maxMetadata    = 1 << 30        // bytes of names, link targets and xattrs kept in memory for one layer
	maxSymlink     = 4095           // PATH_MAX less the NUL: what symlink(2) takes
	maxID          = 1<<32 - 2      // (uid_t)-1 is no user
)

// layer turns entries into the tree, and their data into places in the image.
type layer struct {
	tree    *tree
	scan    *scanner
	data    dataPlacer
	xattrs  map[string]*xattrSet // by encoded body
	entries int
	max     int
	bytes   int // of metadata
}

// dataPlacer consumes the data of a regular file, e.packed bytes, from the stream and notes in i where it is.
type dataPlacer interface {
	place(i *inode, e *entry, src *source) error
}

// read takes the stream to its end.
func (l *layer) read() error {
	for {
		e, err := l.scan.scan()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		err = l.add(e)
		if err == nil {
			err = l.scan.src.pad()
		}
		if errors.Is(err, ErrInvalid) {
			return invalidf("entry %s: %s", quote(e.name), detail(err))
		}
		if err != nil {
			return err
		}
	}
}

func (l *layer) add(e *entry) error {
	if l.entries++; l.entries > l.max {
		return invalidf("more than %d entries", l.max)
	}
	if err := l.charge(len(e.name) + len(e.link)); err != nil {
		return err
	}
	name, err := cleanName(e.name)
	if err != nil {
		return err
	}
	if name == "" {
		if e.typ != typeDir {
			return invalidf("the root is not a directory")
		}
		return l.describe(l.tree.root, e)
	}
	parentName, base := splitName(name)
	parent, err := l.tree.mkdirs(parentName)
	if err != nil {
		return err
	}
	if strings.HasPrefix(base, whiteoutPrefix) && (parent != l.tree.root || !isAUFS(base)) {
		if err := whiteout(parent, base); err != nil {
			return err
		}
		return l.scan.src.each(e.packed, nil)
	}
	if e.typ == typeLink {
		return l.link(parent, base, e)
	}
	return l.put(parent, base, e)
}

// charge counts what an entry leaves in memory, and in the metadata area.
func (l *layer) charge(n int) error {
	if l.bytes += n; l.bytes > maxMetadata {
		return invalidf("more than %d bytes of metadata", maxMetadata)
	}
	return nil
}

func isAUFS(base string) bool {
	return strings.HasPrefix(base, whiteoutMeta) && base != whiteoutOpaque
}

// whiteout notes what the marker file base in d says.
func whiteout(d *inode, base string) error {
	if base == whiteoutOpaque {
		d.dir.opaque = true
		return nil
	}
	name := base[len(whiteoutPrefix):]
	if name == "" || name == "." || name == ".." {
		return invalidf("a whiteout of no name")
	}
	d.dir.hide(name)
	if c := d.dir.children[name]; c != nil && c.is(modeDir) {
		c.dir.opaque = true
	}
	return nil
}

// put makes or replaces the file base in parent.
func (l *layer) put(parent *inode, base string, e *entry) error {
	mode, err := fileMode(e.typ)
	if err != nil {
		return err
	}
	if old := parent.dir.children[base]; old != nil {
		if old.is(modeDir) && mode == modeDir {
			return l.describe(old, e)
		}
		l.tree.remove(parent, base)
	}
	i, err := l.tree.newInode(mode)
	if err != nil {
		return err
	}
	if err := l.describe(i, e); err != nil {
		return err
	}
	switch mode {
	case modeRegular:
		if err := l.data.place(i, e, l.scan.src); err != nil {
			return err
		}
	case modeSymlink:
		if e.link == "" || len(e.link) > maxSymlink {
			return invalidf("a symlink target of %d bytes", len(e.link))
		}
		i.target, i.size = e.link, int64(len(e.link))
	case modeChar, modeBlock:
		var ok bool
		if i.rdev, ok = encodeDev(e.major, e.minor); !ok {
			return invalidf("device number %d:%d is out of range", e.major, e.minor)
		}
	}
	return l.tree.attach(parent, base, i)
}

// link adds a name to a file of this layer. What the entry says of the file's metadata holds for all its names, as
// with docker and containerd, which apply it through the new one.
func (l *layer) link(parent *inode, base string, e *entry) error {
	name, err := cleanName(e.link)
	if err != nil {
		return invalidf("hard link to %s: %s", quote(e.link), detail(err))
	}
	old := parent.dir.children[base]
	i, err := l.find(name)
	if err != nil {
		return invalidf("hard link to %s: %s", quote(e.link), detail(err))
	}
	if i != old || i == nil {
		// The target may be below what the new name replaces: look again.
		l.tree.remove(parent, base)
		if i, err = l.find(name); err != nil {
			return err
		}
	}
	switch {
	case i == nil:
		return invalidf("hard link to %s, which is not in this layer", quote(e.link))
	case i.is(modeDir):
		return invalidf("hard link to %s, a directory", quote(e.link))
	}
	if i != old {
		if err := l.tree.attach(parent, base, i); err != nil {
			return err
		}
	}
	if i.xattrs != nil && len(e.xattrs) > 0 {
		e.xattrs = sortXattrs(append(append([]xattr(nil), i.xattrs.list...), e.xattrs...))
	}
	return l.describe(i, e)
}

// find looks the file up without making or following it; nil: there is none.
func (l *layer) find(name string) (*inode, error) {
	if name == "" {
		return l.tree.root, nil
	}
	parent, base := splitName(name)
	d, err := l.tree.walk(parent, false)
	if err != nil || d == nil {
		return nil, err
	}
	return d.dir.children[base], nil
}

func fileMode(typ byte) (uint16, error) {
	switch typ {
	case typeReg, typeCont:
		return modeRegular, nil
	case typeSymlink:
		return modeSymlink, nil
	case typeChar:
		return modeChar, nil
	case typeBlock:
		return modeBlock, nil
	case typeDir:
		return modeDir, nil
	case typeFIFO:
		return modeFIFO, nil
	}
	return 0, invalidf("entry type %q is not for layers", typ)
}

// describe gives i the metadata of e.
func (l *layer) describe(i *inode, e *entry) error {
	perm := uint16(e.mode & 0o7777)
	if i.is(modeSymlink) {
		perm = 0o777 // as Linux has it, whatever the tar says
	}
	i.mode = i.mode&modeFmt | perm
	i.mtime, i.nsec = e.mtime, e.nsec
	var ok1, ok2 bool
	i.uid, ok1 = ownerID(e.uid)
	i.gid, ok2 = ownerID(e.gid)
	if !ok1 || !ok2 {
		return invalidf("owner %d:%d is out of range", e.uid, e.gid)
	}
	if e.typ == typeLink && len(e.xattrs) == 0 {
		return nil
	}
	return l.setXattrs(i, e.xattrs)
}

// ownerID takes small negative numbers as chown(2) and so docker would: -2 is 4294967294, and -1 leaves root.
func ownerID(id int64) (uint32, bool) {
	if id == -1 || id == maxID+1 {
		return 0, true
	}
	return uint32(id), id >= -1<<31 && id <= maxID
}

// setXattrs gives i those of the attributes that fit its type.
func (l *layer) setXattrs(i *inode, list []xattr) error {
	fit := list[:0:0]
	for _, x := range list {
		if x.fits(i.mode) {
			fit = append(fit, x)
		}
	}
	i.xattrs = nil
	if len(fit) == 0 {
		return nil
	}
	body, err := encodeXattrs(fit)
	if err != nil {
		return err
	}
	set := l.xattrs[string(body)]
	if set == nil {
		if err := l.charge(3 * len(body)); err != nil { // the key and the list are copies
			return err
		}
		set = &xattrSet{list: fit, body: body}
		l.xattrs[string(body)] = set
	}
	i.xattrs = set
	return nil
}
