// Package erofstest makes layers that are hard to get right, for the tests of erofs and of whatever mounts its images.
package erofstest

import (
	"archive/tar"
	"fmt"
	"io"
	"strings"
	"time"
)

// Names in HardTar that tests look for.
const (
	BigDir        = "bigdir" // BigDirEntries files
	BigDirEntries = 10_000
	Whiteout      = "whiteouts/gone" // whited out
	OpaqueDir     = "whiteouts/opaque"
)

// CapNetRaw is security.capability as setcap cap_net_raw+ep writes it: VFS_CAP_REVISION_2 with the effective bit.
const CapNetRaw = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

// HardTar writes a layer, always the same bytes: hard links, xattrs, ACLs and a file capability, devices, a fifo,
// sparse files in every format, empty files, whiteouts, long names and deep paths, big owners, old times, a directory
// of 10,000 entries, and files around the edges of blocks. Every directory has an entry of its own before its
// children, and GNU tar extracts it, but for the sparse files of shape "odd": it takes each piece of data to begin a
// block where all others, archive/tar among them, pack them. It knows nothing of whiteouts and makes marker files.
func HardTar(w io.Writer) error {
	h := &hard{w: w, tw: tar.NewWriter(w)}
	h.dir("./", 0o755)
	h.files()
	h.links()
	h.attributes()
	h.owners()
	h.names()
	h.bigDir()
	h.sparse()
	h.whiteouts()
	if h.err != nil {
		return h.err
	}
	return h.tw.Close()
}

type hard struct {
	w   io.Writer
	tw  *tar.Writer
	err error
}

// longPath is near PATH_MAX; GNU tar needs some bytes of it for "/proc/self/fd/…/".
const longPath = 4060

var epoch = time.Unix(1_700_000_000, 123_456_789)

// put writes one entry; unset fields get plain values.
func (h *hard) put(hdr tar.Header, data string) {
	if h.err != nil {
		return
	}
	if hdr.ModTime.IsZero() {
		hdr.ModTime = epoch
	}
	if hdr.Mode == 0 {
		hdr.Mode = 0o644
	}
	if hdr.Format == tar.FormatUnknown {
		hdr.Format = tar.FormatPAX
	}
	hdr.Size = int64(len(data))
	if h.err = h.tw.WriteHeader(&hdr); h.err == nil {
		_, h.err = io.WriteString(h.tw, data)
	}
	if h.err != nil {
		h.err = fmt.Errorf("%.80s: %w", hdr.Name, h.err)
	}
}

func (h *hard) dir(name string, mode int64) {
	h.put(tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: mode}, "")
}

func (h *hard) file(name, data string) {
	h.put(tar.Header{Typeflag: tar.TypeReg, Name: name}, data)
}

// Pattern is n bytes that repeat late and differ by seed.
func Pattern(n int, seed uint32) string {
	b := make([]byte, n)
	x := seed*2654435761 + 1
	for i := range b {
		x ^= x << 13
		x ^= x >> 17
		x ^= x << 5
		b[i] = byte(x)
	}
	return string(b)
}

func (h *hard) files() {
	h.dir("files/", 0o1777)
	for _, n := range []int{0, 1, 511, 512, 513, 1023, 1024, 4095, 4096, 4097, 8191, 8192, 8193, 65536, 1<<20 - 1, 1<<20 + 3} {
		h.file(fmt.Sprintf("files/%d", n), Pattern(n, uint32(n)))
	}
	h.put(tar.Header{Typeflag: tar.TypeReg, Name: "files/setuid", Mode: 0o6755}, "#!/bin/sh\n")
	h.put(tar.Header{Typeflag: tar.TypeReg, Name: "files/ustar", Format: tar.FormatUSTAR, ModTime: time.Unix(1, 0)}, "ustar")
	h.put(tar.Header{Typeflag: tar.TypeReg, Name: "files/gnu", Format: tar.FormatGNU, ModTime: time.Unix(-5, 0)}, "gnu")
	h.put(tar.Header{Typeflag: tar.TypeReg, Name: "files/unreadable", Mode: 0o1}, "no")
	h.file("files/replaced", "the first version")
	h.file("files/replaced", "the second one")
	h.dir("files/again/", 0o700)
	h.file("files/again/kept", "kept")
	h.dir("files/again/", 0o750)
	h.put(tar.Header{Typeflag: tar.TypeChar, Name: "files/null", Devmajor: 1, Devminor: 3, Mode: 0o666}, "")
	h.put(tar.Header{Typeflag: tar.TypeBlock, Name: "files/block", Devmajor: 259, Devminor: 70000, Mode: 0o660}, "")
	h.put(tar.Header{Typeflag: tar.TypeFifo, Name: "files/fifo", Mode: 0o600}, "")
}

func (h *hard) links() {
	h.dir("links/", 0o755)
	h.file("links/a", "three names")
	for _, name := range []string{"links/b", "files/c"} {
		h.put(tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: "links/a"}, "")
	}
	link := func(name, target string) {
		h.put(tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}, "")
	}
	link("links/sym", "../files/1")
	link("links/abs", "/etc/passwd")
	link("links/dangling", "no/such/file")
	link("links/loop", "loop")
	// Around what fits beside an inode in a 512-byte block, and in a page.
	for _, n := range []int{255, 383, 384, 385, 447, 448, 449, 511, 512, 513, 2000, 3967, 3968, 3969, 4094, 4095} {
		link(fmt.Sprintf("links/len%d", n), strings.Repeat("x/", n/2)+strings.Repeat("y", n%2))
	}
	h.put(tar.Header{Typeflag: tar.TypeLink, Name: "links/symlink2", Linkname: "links/sym", Mode: 0o777}, "")
	// Entries below a symlink to a directory land in that directory.
	link("links/dir", "../files/again")
	h.put(tar.Header{Typeflag: tar.TypeLink, Name: "links/below", Linkname: "files/again/kept"}, "")
}

func (h *hard) attributes() {
	h.dir("attrs/", 0o755)
	with := func(typ byte, name, data string, attrs ...string) {
		records := map[string]string{}
		for i := 0; i < len(attrs); i += 2 {
			records["SCHILY.xattr."+attrs[i]] = attrs[i+1]
		}
		mode := int64(0o755)
		if strings.Contains(name, "acl") {
			mode = 0o774 // the group bits are the mask's
		}
		h.put(tar.Header{Typeflag: typ, Name: name, Mode: mode, PAXRecords: records, Linkname: ""}, data)
	}
	with(tar.TypeReg, "attrs/cap", "ping", "security.capability", CapNetRaw)
	with(tar.TypeReg, "attrs/user", "u", "user.one", "1", "user.empty", "", "user.bin\u00e9", Pattern(40, 7)+"=\n")
	with(tar.TypeReg, "attrs/trusted", "", "trusted.t", "t", "user.u", "u", "security.s", "s")
	with(tar.TypeReg, "attrs/large", Pattern(600, 3), "user.large", Pattern(2500, 4), "user."+strings.Repeat("n", 250), "long name")
	for _, n := range []int{380, 400, 420, 440, 460, 480, 500} { // xattrs that cross blocks of 512 bytes
		with(tar.TypeReg, fmt.Sprintf("attrs/edge%d", n), "x", "user.edge", Pattern(n, uint32(n)))
	}
	with(tar.TypeDir, "attrs/dir/", "", "user.d", "on a directory", "trusted.d", "t")
	with(tar.TypeReg, "attrs/acl", "acl", "system.posix_acl_access", acl)
	with(tar.TypeDir, "attrs/acldir/", "", "system.posix_acl_access", acl, "system.posix_acl_default", acl)
	with(tar.TypeFifo, "attrs/fifo", "", "trusted.fifo", "f")
	h.put(tar.Header{Typeflag: tar.TypeSymlink, Name: "attrs/symlink", Linkname: "user", Mode: 0o777,
		PAXRecords: map[string]string{"SCHILY.xattr.trusted.link": "l", "SCHILY.xattr.security.link": Pattern(300, 9)}}, "")
}

// acl is user::rwx user:1000:r-- group::r-x mask::rwx other::r-- as the kernel takes it: struct posix_acl_xattr_header
// and its entries (tag, permissions, id), include/uapi/linux/posix_acl_xattr.h.
const acl = "\x02\x00\x00\x00" +
	"\x01\x00\x07\x00\xff\xff\xff\xff" +
	"\x02\x00\x04\x00\xe8\x03\x00\x00" +
	"\x04\x00\x05\x00\xff\xff\xff\xff" +
	"\x10\x00\x07\x00\xff\xff\xff\xff" +
	"\x20\x00\x04\x00\xff\xff\xff\xff"

func (h *hard) owners() {
	h.dir("owners/", 0o755)
	for i, id := range []int{1, 65534, 65535, 65536, 100000, 1<<31 + 5, 1<<32 - 2} {
		h.put(tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("owners/%d", id), Uid: id, Gid: id - i}, "")
	}
	h.put(tar.Header{Typeflag: tar.TypeReg, Name: "owners/base256", Format: tar.FormatGNU, Uid: 3 << 21, Gid: 5 << 21,
		ModTime: time.Unix(-1000, 0)}, "base-256 fields")
	for _, t := range []time.Time{time.Unix(0, 0), time.Unix(-1, 5e8), time.Unix(-86400*365*20, 1), time.Unix(1<<31, 999_999_999), time.Unix(1<<33, 0)} {
		h.put(tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("owners/t%d.%d", t.Unix(), t.Nanosecond()), ModTime: t}, "")
	}
}

func (h *hard) names() {
	h.dir("names/", 0o755)
	// Before and after "." and ".." in the order of bytes, and no UTF-8 at all.
	for _, n := range []string{"!", "-", "+x", " ", ".-", ".a", "..a", "...", "/x"[1:], "\xff\xfe", "ü", "a\nb", `back\slash`, "~"} {
		h.file("names/"+n, n)
	}
	for n := 200; n <= 255; n += 5 { // long names: one to a block of 512 bytes
		h.file("names/"+strings.Repeat("n", n), "")
	}
	deep := "names/"
	for longPath-len(deep) > 255 {
		deep += strings.Repeat("d", 200) + "/"
		h.dir(deep, 0o755)
	}
	h.file(deep+strings.Repeat("f", longPath-len(deep)), "far down")
	deep = "names/deep/"
	h.dir(deep, 0o755)
	for range 500 {
		deep += "d/"
		h.dir(deep, 0o711)
	}
	h.file(deep+"bottom", "")
}

func (h *hard) bigDir() {
	h.dir(BigDir+"/", 0o755)
	for i := range BigDirEntries {
		h.file(fmt.Sprintf("%s/%s%d", BigDir, strings.Repeat("e", i%37), i*7919%BigDirEntries), "")
	}
}

func (h *hard) whiteouts() {
	h.dir("whiteouts/", 0o755)
	h.file("whiteouts/.wh.gone", "")
	h.file("whiteouts/there", "there")
	h.dir(OpaqueDir+"/", 0o755)
	h.file(OpaqueDir+"/.wh..wh..opq", "")
	h.file(OpaqueDir+"/own", "own")
}
