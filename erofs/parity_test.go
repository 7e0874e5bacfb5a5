package erofs_test

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cradlevm/cradle/erofs"
	"github.com/cradlevm/cradle/erofs/erofstest"
	"golang.org/x/sys/unix"
)

// TestKernelParity mounts the image and compares each path with what GNU tar extracts from the same tar.
func TestKernelParity(t *testing.T) {
	needMounts(t)
	hard := hardTar(t)
	ref := reference(t, hard)
	want := survey(t, ref)
	for _, f := range forms {
		t.Run(f.name, func(t *testing.T) {
			if f.form == erofs.TarIndex && !kernelAtLeast(6, 4) {
				t.Skip("this kernel mounts no 512-byte blocks (6.4)")
			}
			img := writeImage(t, hard, f.form)
			if fsck, err := exec.LookPath("fsck.erofs"); err == nil && f.form == erofs.Full { // 1.5 knows one block size
				if out, err := exec.Command(fsck, "-d2", img).CombinedOutput(); err != nil {
					t.Errorf("fsck.erofs: %v\n%s", err, out)
				}
			}
			got := survey(t, mount(t, img))
			if len(got) < erofstest.BigDirEntries {
				t.Fatalf("%d paths", len(got))
			}
			compareSurveys(t, got, want)
		})
	}
}

// TestOverlay checks that overlayfs takes the whiteouts for what they are.
func TestOverlay(t *testing.T) {
	needMounts(t)
	lower := t.TempDir()
	for _, name := range []string{erofstest.Whiteout, erofstest.OpaqueDir + "/below", "whiteouts/seen"} {
		p := filepath.Join(lower, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	top := mount(t, writeImage(t, hardTar(t), erofs.TarIndex))
	at := t.TempDir()
	if err := unix.Mount("overlay", at, "overlay", unix.MS_RDONLY, "lowerdir="+top+":"+lower); err != nil {
		t.Skipf("no overlayfs here: %v", err)
	}
	t.Cleanup(func() { unmount(t, at) })
	for name, seen := range map[string]bool{
		erofstest.Whiteout: false, erofstest.OpaqueDir + "/below": false, erofstest.OpaqueDir + "/own": true,
		"whiteouts/there": true, "whiteouts/seen": true,
	} {
		if _, err := os.Lstat(filepath.Join(at, name)); (err == nil) != seen {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func needMounts(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	_ = exec.Command("modprobe", "erofs").Run()
	if b, err := os.ReadFile("/proc/filesystems"); err != nil || !bytes.Contains(b, []byte("\terofs\n")) {
		t.Skip("this kernel has no erofs")
	}
	for _, tool := range []string{"mount", "losetup", "tar"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip(err)
		}
	}
	if out, err := exec.Command("losetup", "-f").CombinedOutput(); err != nil {
		t.Skipf("no loop devices: %s", out)
	}
}

func kernelAtLeast(major, minor int) bool {
	var u unix.Utsname
	var a, b int
	if unix.Uname(&u) != nil {
		return false
	}
	_, _ = fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &a, &b)
	return a > major || a == major && b >= minor
}

func writeImage(t *testing.T, b []byte, form erofs.Form) string {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "image"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := erofs.FromTar(f, bytes.NewReader(b), erofs.Options{Form: form}); err != nil {
		t.Fatal(err)
	}
	return f.Name()
}

// mount mounts an image until the test ends; mount(8) finds a loop device that frees itself on unmount.
func mount(t *testing.T, img string) string {
	t.Helper()
	at := t.TempDir()
	if out, err := exec.Command("mount", "-t", "erofs", "-o", "ro,loop", img, at).CombinedOutput(); err != nil {
		t.Fatalf("mount: %v\n%s", err, out)
	}
	t.Cleanup(func() { unmount(t, at) })
	return at
}

func unmount(t *testing.T, at string) {
	if err := unix.Unmount(at, 0); err != nil {
		t.Errorf("unmount: %v", err)
		_ = unix.Unmount(at, unix.MNT_DETACH)
	}
}

// reference extracts the tar with GNU tar and then does by hand what GNU tar does not: whiteouts, odd sparse files,
// ACLs that are xattrs in the tar, and times of directories that it wrote to once more after their own entry.
func reference(t *testing.T, b []byte) string {
	t.Helper()
	dir := t.TempDir()
	cmd := exec.Command("tar", "--xattrs", "--xattrs-include=*", "--acls", "--numeric-owner", "--same-permissions",
		"--warning=no-timestamp", "--exclude=*-odd", "--exclude=.wh.*", "-xf", "-", "-C", dir)
	cmd.Stdin = bytes.NewReader(b)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Skipf("GNU tar cannot extract the reference here: %v\n%.2000s", err, out)
	}
	for r := tar.NewReader(bytes.NewReader(b)); ; {
		h, err := r.Next()
		if err == io.EOF {
			return dir
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := settle(dir, h); err != nil {
			t.Fatal(err)
		}
		base := path.Base(h.Name)
		if !strings.HasPrefix(base, ".wh.") && !strings.HasSuffix(base, "-odd") {
			continue
		}
		if err := byHand(dir, h, r); err != nil {
			t.Fatal(err)
		}
	}
}

func settle(dir string, h *tar.Header) error {
	p := filepath.Join(dir, h.Name)
	for _, name := range []string{"system.posix_acl_access", "system.posix_acl_default"} {
		if v := h.PAXRecords["SCHILY.xattr."+name]; v != "" {
			if err := unix.Setxattr(p, name, []byte(v), 0); err != nil {
				return err
			}
		}
	}
	if h.Typeflag == tar.TypeDir && len(h.Name) < 100 {
		return os.Chtimes(p, h.ModTime, h.ModTime)
	}
	return nil
}

func byHand(dir string, h *tar.Header, data io.Reader) error {
	parent := filepath.Join(dir, path.Dir(h.Name))
	before, err := os.Lstat(parent)
	if err != nil {
		return err
	}
	base := path.Base(h.Name)
	p := filepath.Join(parent, base)
	switch name, white := strings.CutPrefix(base, ".wh."); {
	case base == ".wh..wh..opq":
		err = unix.Setxattr(parent, "trusted.overlay.opaque", []byte("y"), 0)
	case white:
		p = filepath.Join(parent, name)
		err = unix.Mknod(p, unix.S_IFCHR, 0)
		_ = unix.Lutimes(p, make([]unix.Timeval, 2))
	default:
		var b []byte
		if b, err = io.ReadAll(data); err == nil {
			err = os.WriteFile(p, b, 0o644)
		}
		if err == nil {
			err = os.Chtimes(p, h.ModTime, h.ModTime)
		}
	}
	if err == nil {
		err = os.Chtimes(parent, before.ModTime(), before.ModTime())
	}
	return err
}

// facts are all that a path says of itself; inode numbers are replaced by the first path that has it.
type facts struct {
	mode, uid, gid uint32
	nlink, rdev    uint64
	size           int64
	mtime          unix.Timespec
	target         string
	sum            string
	xattrs         string
	first          string
}

// survey walks the tree by file descriptors, for its paths are too long for path names that begin at "/".
func survey(t *testing.T, root string) map[string]facts {
	t.Helper()
	all := map[string]facts{}
	firsts := map[uint64]string{}
	var walk func(dir *os.File, at string)
	walk = func(dir *os.File, at string) {
		names, err := dir.Readdirnames(-1)
		if err != nil {
			t.Fatalf("%.200q: %v", at, err)
		}
		slices.Sort(names)
		for _, name := range names {
			full := fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), name)
			p := at + "/" + name
			f := lookAt(t, full, p, firsts)
			all[p] = f
			if f.mode&unix.S_IFMT == unix.S_IFDIR {
				sub, err := os.Open(full)
				if err != nil {
					t.Fatalf("%.200q: %v", p, err)
				}
				walk(sub, p)
				sub.Close()
			}
		}
	}
	d, err := os.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	all["/"] = lookAt(t, root, "/", firsts)
	walk(d, "")
	return all
}

func lookAt(t *testing.T, full, p string, firsts map[uint64]string) facts {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(full, &st); err != nil {
		t.Fatalf("lstat %.200q: %v", p, err)
	}
	f := facts{mode: st.Mode, uid: st.Uid, gid: st.Gid, nlink: uint64(st.Nlink), rdev: st.Rdev, size: st.Size, mtime: st.Mtim}
	if firsts[st.Ino] == "" {
		firsts[st.Ino] = p
	}
	f.first = firsts[st.Ino]
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		f.size = 0 // each file system has its own idea
	case unix.S_IFLNK:
		f.target, _ = os.Readlink(full)
	case unix.S_IFREG:
		sum := sha256.New()
		r, err := os.Open(full)
		if err != nil {
			t.Fatalf("%.200q: %v", p, err)
		}
		_, err = io.Copy(sum, r)
		r.Close()
		f.sum = fmt.Sprintf("%x %v", sum.Sum(nil), err)
	}
	f.xattrs = xattrsOf(t, full, p)
	return f
}

func xattrsOf(t *testing.T, full, p string) string {
	t.Helper()
	buf := make([]byte, 1<<16)
	n, err := unix.Llistxattr(full, buf)
	if err != nil {
		t.Fatalf("listxattr %.200q: %v", p, err)
	}
	var all []string
	for _, name := range strings.Split(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00") {
		if name == "" {
			continue
		}
		v := make([]byte, 1<<16)
		n, err := unix.Lgetxattr(full, name, v)
		if err != nil {
			t.Fatalf("getxattr %.200q %s: %v", p, name, err)
		}
		all = append(all, fmt.Sprintf("%s=%x", name, v[:n]))
	}
	slices.Sort(all)
	return strings.Join(all, " ")
}

func compareSurveys(t *testing.T, got, want map[string]facts) {
	t.Helper()
	shown := 0
	for p, w := range want {
		if g, ok := got[p]; !ok {
			t.Errorf("%.200q is missing", p)
		} else if g != w {
			t.Errorf("%.200q:\n got %.400s\nwant %.400s", p, fmt.Sprintf("%+v", g), fmt.Sprintf("%+v", w))
		} else {
			continue
		}
		if shown++; shown == 20 {
			t.Fatal("and so on")
		}
	}
	for p := range got {
		if _, ok := want[p]; !ok {
			t.Errorf("%.200q is too many", p)
		}
	}
}
