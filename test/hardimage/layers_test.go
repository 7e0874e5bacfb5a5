package hardimage

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/cradlevm/cradle/erofs/erofstest"
)

// layer is a tar in the making. Every directory has an entry of its own, as in what docker builds.
type layer struct {
	t *testing.T
	b bytes.Buffer
	w *tar.Writer
}

func newLayer(t *testing.T) *layer {
	l := &layer{t: t}
	l.w = tar.NewWriter(&l.b)
	l.put(tar.Header{Name: "./", Mode: 0o755}, "")
	return l
}

func (l *layer) bytes() []byte {
	if err := l.w.Close(); err != nil {
		l.t.Fatal(err)
	}
	return l.b.Bytes()
}

// put writes an entry; a name that ends in "/" is a directory.
func (l *layer) put(h tar.Header, data string, xattrs ...string) {
	l.t.Helper()
	h.Size = int64(len(data))
	if h.Typeflag == 0 {
		h.Typeflag = tar.TypeReg
		if strings.HasSuffix(h.Name, "/") {
			h.Typeflag = tar.TypeDir
		}
	}
	if h.Mode == 0 {
		h.Mode = 0o755
	}
	if h.ModTime.IsZero() {
		h.ModTime = time.Unix(1_600_000_000, 987_654_321)
	}
	h.Format = tar.FormatPAX
	for i := 0; i < len(xattrs); i += 2 {
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords["SCHILY.xattr."+xattrs[i]] = xattrs[i+1]
	}
	if err := l.w.WriteHeader(&h); err != nil {
		l.t.Fatal(err)
	}
	if _, err := io.WriteString(l.w, data); err != nil {
		l.t.Fatal(err)
	}
}

func (l *layer) add(names ...string) {
	for _, n := range names {
		data := ""
		if !strings.HasSuffix(n, "/") && !strings.Contains(n, ".wh.") {
			data = "base's " + n
		}
		l.put(tar.Header{Name: n}, data)
	}
}

// baseLayer lies below the hard one: places for mounts, what the layers above delete, hide, replace and merge with,
// and what stays.
func baseLayer(t *testing.T) []byte {
	l := newLayer(t)
	l.add("dev/", "proc/", "sys/", "etc/", "etc/hosts", "etc/hostname", "etc/resolv.conf")
	l.put(tar.Header{Name: "etc/passwd"}, "root:x:0:0:root:/:/bin/sh\n")
	l.put(tar.Header{Name: "whiteouts/", Mode: 0o700}, "", "user.base", "hidden")
	l.add("whiteouts/gone/", "whiteouts/gone/with/", "whiteouts/gone/with/content")
	l.add("whiteouts/opaque/", "whiteouts/opaque/below", "whiteouts/opaque/sub/", "whiteouts/opaque/sub/below")
	l.add("whiteouts/there", "whiteouts/seen", "whiteouts/again/", "whiteouts/again/below")
	l.put(tar.Header{Name: "files/", Mode: 0o700, Uid: 70_000}, "")
	l.add("files/1/", "files/1/was-a-directory", "files/again", "files/base", "files/null")
	l.add("links/", "links/a", "links/kept", "links/below-file/", "links/sym/", "links/sym/was-a-directory")
	l.put(tar.Header{Typeflag: tar.TypeLink, Name: hiddenLink, Linkname: "links/a"}, "")
	l.put(tar.Header{Typeflag: tar.TypeLink, Name: "links/kept2", Linkname: "links/kept"}, "")
	l.put(tar.Header{Name: "attrs/"}, "", "user.base", "hidden", "trusted.base", "hidden")
	l.put(tar.Header{Name: "attrs/dir/"}, "", "user.base", "hidden")
	l.put(tar.Header{Name: "attrs/basecap"}, "ping", "security.capability", erofstest.CapNetRaw)
	long := "names/" + strings.Repeat("d", 200) + "/"
	l.add("names/", long, long+"base", "names/deep/", "names/deep/d/", "names/deep/d/base")
	l.add("bigdir/", "bigdir/0")
	for i := range 300 {
		l.add(fmt.Sprintf("bigdir/base%d", i))
	}
	l.put(tar.Header{Name: "untouched/", Mode: 0o2751, Uid: 1 << 31, Gid: 100_000, ModTime: time.Unix(-700_000_000, 1)}, "", "user.base", "seen")
	l.add("untouched/file", "untouched/for-the-top")
	return l.bytes()
}

// topLayer has the walker, and deletes and restores a little of both layers below.
func topLayer(t *testing.T, walker string) []byte {
	program, err := os.ReadFile(walker)
	if err != nil {
		t.Fatal(err)
	}
	l := newLayer(t)
	l.put(tar.Header{Name: "walk"}, string(program))
	l.put(tar.Header{Name: "untouched/", Mode: 0o2751, ModTime: time.Unix(-1, 5)}, "", "user.top", "seen")
	l.add("untouched/.wh.for-the-top")
	l.add("whiteouts/", "whiteouts/.wh.again", "whiteouts/again/", "whiteouts/again/own")
	l.put(tar.Header{Name: "files/", Mode: 0o1777}, "")
	l.add("files/.wh.513", "files/.wh.again")
	l.add("sparse/", "sparse/.wh..wh..opq", "sparse/own")
	return l.bytes()
}

func hardLayer(t *testing.T) []byte {
	var b bytes.Buffer
	if err := erofstest.HardTar(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}
