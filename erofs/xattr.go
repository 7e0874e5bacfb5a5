package erofs

import (
	"cmp"
	"slices"
	"strings"
)

// xattr is one extended attribute: the name without the prefix that index stands for.
type xattr struct {
	index byte
	name  string
	value string
}

// xattrSet is the attributes of an inode, encoded once and shared in memory by all inodes that have the same ones.
type xattrSet struct {
	list []xattr
	body []byte // struct erofs_xattr_ibody_header and its entries
}

// opaque is what tells overlayfs that a directory hides the lower layers' one (Documentation/filesystems/overlayfs.rst).
var opaque = xattr{index: xattrTrusted, name: "overlay.opaque", value: "y"}

// maxXattrBody is what i_xattr_icount, a u16, can count (erofs_xattr_ibody_size).
const maxXattrBody = xattrHeadSize + 4*(1<<16-2)

// newXattr checks one attribute. keep is false for those that Linux would not take and docker leaves out: namespaces
// of other systems ("com.apple."), and overlayfs's own, which no process in the container could see anyway and which
// would let a layer tell overlayfs to look elsewhere.
func newXattr(full string, value []byte) (x xattr, keep bool, err error) {
	x.value = string(value)
	switch {
	case full == "system.posix_acl_access":
		x.index = xattrACLAccess
	case full == "system.posix_acl_default":
		x.index = xattrACLDefault
	case strings.HasPrefix(full, "trusted.overlay."):
		return xattr{}, false, nil
	case strings.HasPrefix(full, "user."):
		x.index, x.name = xattrUser, full[len("user."):]
	case strings.HasPrefix(full, "trusted."):
		x.index, x.name = xattrTrusted, full[len("trusted."):]
	case strings.HasPrefix(full, "security."):
		x.index, x.name = xattrSecurity, full[len("security."):]
	default:
		return xattr{}, false, nil
	}
	isACL := x.index == xattrACLAccess || x.index == xattrACLDefault
	switch {
	case len(full) > 255, x.name == "" && !isACL, strings.IndexByte(full, 0) >= 0: // XATTR_NAME_MAX
		return xattr{}, false, invalidf("bad xattr name %s", quote(full))
	case len(value) > 1<<16-1: // e_value_size is a u16
		return xattr{}, false, invalidf("xattr %s has a value of %d bytes", quote(full), len(value))
	case isACL && (len(value) < 4 || len(value)%8 != 4 || le.Uint32(value) != 2): // include/uapi/linux/posix_acl_xattr.h
		return xattr{}, false, invalidf("xattr %s is not an ACL", full)
	}
	return x, true, nil
}

// fits says whether Linux lets a file of this type have the attribute; docker ignores the refusal.
func (x xattr) fits(mode uint16) bool {
	switch fmt := mode & modeFmt; x.index {
	case xattrUser:
		return fmt == modeRegular || fmt == modeDir
	case xattrACLAccess:
		return fmt != modeSymlink
	case xattrACLDefault:
		return fmt == modeDir
	}
	return true
}

func compareXattr(a, b xattr) int {
	return cmp.Or(cmp.Compare(a.index, b.index), strings.Compare(a.name, b.name))
}

// sortXattrs sorts the list; of several with one name the last stays.
func sortXattrs(list []xattr) []xattr {
	slices.SortStableFunc(list, compareXattr)
	slices.Reverse(list) // the last of equals comes first, which is the one that Compact keeps
	list = slices.CompactFunc(list, func(a, b xattr) bool { return compareXattr(a, b) == 0 })
	slices.Reverse(list)
	return list
}

// encodeXattrs lays the list out as it follows an inode: header, then entries that are 4-byte aligned each.
func encodeXattrs(list []xattr) ([]byte, error) {
	b := make([]byte, xattrHeadSize, xattrHeadSize+64)
	for _, x := range list {
		var e [xattrItemSize]byte
		e[0], e[1] = byte(len(x.name)), x.index
		le.PutUint16(e[2:], uint16(len(x.value)))
		b = append(b, e[:]...)
		b = append(b, x.name...)
		b = append(b, x.value...)
		b = append(b, make([]byte, -len(b)&3)...)
		if len(b) > maxXattrBody {
			return nil, invalidf("more than %d bytes of xattrs", maxXattrBody)
		}
	}
	return b, nil
}
