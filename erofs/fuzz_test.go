package erofs_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/cradlevm/cradle/erofs"
	"github.com/cradlevm/cradle/erofs/erofstest"
	"golang.org/x/sys/unix"
)

// FuzzFromTar: whatever comes in, out comes ErrInvalid or an image that reads back whole, tar included.
func FuzzFromTar(f *testing.F) {
	for _, seed := range fuzzSeeds(f) {
		f.Add(seed, true, true)
		f.Add(seed, true, false)
	}
	f.Fuzz(func(t *testing.T, b []byte, repair, full bool) {
		if len(b) > 1<<20 {
			t.Skip()
		}
		if repair {
			b = repairChecksums(b)
		}
		o := erofs.Options{MaxBytes: 1 << 20, MaxEntries: 5000}
		if full {
			o.Form = erofs.Full
		}
		img, err := inMemory(t, b, o)
		if errors.Is(err, erofs.ErrInvalid) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		m, paths, err := walkImage(img)
		if err != nil {
			t.Fatal(err)
		}
		for p, n := range paths {
			if n.kind() != 0o100000 {
				continue
			}
			if err := m.copyData(io.Discard, n); err != nil && err != errHuge {
				t.Fatalf("%q: %v", p, err)
			}
		}
		if full {
			return
		}
		r, err := erofs.Tar(bytes.NewReader(img))
		if err != nil {
			t.Fatal(err)
		}
		if out, err := io.ReadAll(r); err != nil || !bytes.Equal(out, b) {
			t.Fatalf("the tar comes back changed: %v", err)
		}
	})
}

func inMemory(t *testing.T, b []byte, o erofs.Options) ([]byte, error) {
	fd, err := unix.MemfdCreate("image", unix.MFD_CLOEXEC)
	if err != nil {
		t.Skip(err)
	}
	f := os.NewFile(uintptr(fd), "image")
	defer f.Close()
	info, err := erofs.FromTar(f, bytes.NewReader(b), o)
	if err != nil {
		return nil, err
	}
	if info.TarBytes != int64(len(b)) {
		t.Fatalf("%+v of %d bytes", info, len(b))
	}
	// Two megabytes of tar and holes, the inodes with their xattrs, and a chunk table for each sparse file.
	if limit := int64(len(b))*600 + 16<<20; info.ImageBytes > limit*8 {
		t.Fatalf("%d bytes of tar made an image of %d", len(b), info.ImageBytes)
	}
	img := make([]byte, info.ImageBytes)
	if _, err := f.ReadAt(img, 0); err != nil {
		t.Fatal(err)
	}
	return img, nil
}

// repairChecksums lets mutated headers past the checksum.
func repairChecksums(b []byte) []byte {
	b = bytes.Clone(b)
	for off := 0; off+512 <= len(b); off += 512 {
		h := b[off : off+512]
		if string(h[257:262]) != "ustar" {
			continue
		}
		copy(h[148:], "        ")
		sum := 0
		for _, c := range h {
			sum += int(c)
		}
		copy(h[148:], fmt.Sprintf("%06o\x00 ", sum))
	}
	return b
}

func fuzzSeeds(f *testing.F) [][]byte {
	f.Helper()
	seeds := [][]byte{nil, make([]byte, 1024)}
	for _, s := range []string{
		"d a\nf a/b 1\nl c a\nh d a/b\nf .wh.x\nf a/.wh..wh..opq\nc dev\nf c/e 2",
		"f .wh.x\nd x\nf x/y 1\nf x 2\nd x\nh z x/y",
		"f " + strings.Repeat("n", 255) + " 1\nl l " + strings.Repeat("t", 500) + "\nd .wh..wh.plnk\nf .wh..wh.plnk/1 x\nh a .wh..wh.plnk/1",
	} {
		seeds = append(seeds, script(f, s))
	}
	acl := "\x02\x00\x00\x00" + strings.Repeat("\x01\x00\x07\x00\xff\xff\xff\xff", 2)
	seeds = append(seeds,
		paxed("path", "a/b", "uid", "70000", "gid", "1", "mtime", "-1.5", "size", "2"),
		paxed("SCHILY.xattr.user.a", strings.Repeat("v", 600), "SCHILY.xattr.security.capability", erofstest.CapNetRaw,
			"SCHILY.xattr.system.posix_acl_access", acl, "SCHILY.xattr.trusted.overlay.opaque", "y"),
		paxed("GNU.sparse.size", "1000", "GNU.sparse.map", "1,2,512,1", "GNU.sparse.name", "s"),
		paxed("GNU.sparse.size", "9000", "GNU.sparse.offset", "8192", "GNU.sparse.numbytes", "3"),
		pieces(erofstest.Block("L", 'L', 300, nil), strings.Repeat("l/", 150), erofstest.Block("K", 'K', 5, nil), "link", erofstest.Block("f", '2', 0, nil)),
		pieces(erofstest.Block("f", 'S', 515, func(b []byte) {
			copy(b[257:], "ustar  \x00")
			copy(b[386:], "00000000000\x0000000001000\x0000000004000\x0000000000003\x00")
			copy(b[483:], "00000010000\x00")
		}), strings.Repeat("x", 515)))
	ten := erofstest.Record("GNU.sparse.major", "1") + erofstest.Record("GNU.sparse.minor", "0") + erofstest.Record("GNU.sparse.realsize", "1024")
	return append(seeds, pieces(erofstest.Block("x", 'x', int64(len(ten)), nil), ten, erofstest.Block("f", '0', 1024, nil),
		"1\n512\n512\n", strings.Repeat("x", 512)))
}

func BenchmarkFromTar(b *testing.B) {
	hard := hardTar(b)
	var big bytes.Buffer // 256 MiB in 4,096 files
	data := erofstest.Pattern(64<<10, 1)
	for i := range 4096 {
		big.Write(erofstest.Block(fmt.Sprintf("d%d/f%d", i%64, i), '0', int64(len(data)), nil))
		big.WriteString(data)
	}
	big.Write(make([]byte, 1024))
	var many bytes.Buffer // 200,000 files of nothing
	for i := range 200_000 {
		many.Write(erofstest.Block(fmt.Sprintf("usr/share/d%d/file%d", i/100, i), '0', 0, nil))
	}
	many.Write(make([]byte, 1024))
	for _, in := range []struct {
		name string
		b    []byte
	}{{"Hard", hard}, {"256MiB", big.Bytes()}, {"200kFiles", many.Bytes()}} {
		for _, form := range forms {
			b.Run(in.name+"/"+form.name, func(b *testing.B) {
				b.SetBytes(int64(len(in.b)))
				b.ReportAllocs()
				f, err := os.Create(b.TempDir() + "/image")
				if err != nil {
					b.Fatal(err)
				}
				defer f.Close()
				for b.Loop() {
					if err := f.Truncate(0); err != nil {
						b.Fatal(err)
					}
					if _, err := erofs.FromTar(f, bytes.NewReader(in.b), erofs.Options{Form: form.form}); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
