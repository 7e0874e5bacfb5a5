package hardimage

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// reference extracts the layers, lowest first, with GNU tar; what GNU tar does not know is done by hand: whiteouts
// (whose meaning this file states independently of package erofs), sparse files of shape "odd" (see erofstest), ACLs
// that are xattrs in the tar, and times of directories that it writes to once more after their own entries.
func reference(t *testing.T, layers ...[]byte) string {
	t.Helper()
	root := t.TempDir()
	for _, l := range layers {
		if err := apply(root, l); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func apply(root string, layer []byte) error {
	// All that a layer deletes or replaces is of the layers below, so it goes before anything comes.
	if err := eachEntry(layer, func(h *tar.Header, _ io.Reader) error { return makeRoom(root, h) }); err != nil {
		return err
	}
	cmd := exec.Command("tar", "--xattrs", "--xattrs-include=*", "--acls", "--numeric-owner", "-p", "--same-owner",
		"--warning=no-timestamp", "--exclude=*-odd", "--exclude=.wh.*", "-xf", "-", "-C", root)
	cmd.Stdin = bytes.NewReader(layer)
	if out, err := cmd.CombinedOutput(); err != nil {
		return errors.Join(err, errors.New(string(out[:min(len(out), 2000)])))
	}
	if err := eachEntry(layer, func(h *tar.Header, data io.Reader) error { return complete(root, h, data) }); err != nil {
		return err
	}
	return eachEntry(layer, func(h *tar.Header, _ io.Reader) error {
		if h.Typeflag != tar.TypeDir || len(h.Name) > 1000 { // nothing is written to the very deep ones
			return nil
		}
		ts := unix.NsecToTimespec(h.ModTime.UnixNano())
		return unix.UtimesNano(filepath.Join(root, h.Name), []unix.Timespec{ts, ts})
	})
}

func eachEntry(layer []byte, do func(*tar.Header, io.Reader) error) error {
	for r := tar.NewReader(bytes.NewReader(layer)); ; {
		h, err := r.Next()
		if err == io.EOF {
			return nil
		}
		if err == nil {
			err = do(h, r)
		}
		if err != nil {
			return err
		}
	}
}

// makeRoom deletes what the entry hides of the layers below.
func makeRoom(root string, h *tar.Header) error {
	dir, base := filepath.Join(root, path.Dir(path.Clean(h.Name))), path.Base(h.Name)
	if base == ".wh..wh..opq" {
		names, err := os.ReadDir(dir)
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		for _, n := range names {
			err = errors.Join(err, os.RemoveAll(filepath.Join(dir, n.Name())))
		}
		return err
	}
	if name, ok := strings.CutPrefix(base, ".wh."); ok {
		return os.RemoveAll(filepath.Join(dir, name))
	}
	p := filepath.Join(root, h.Name)
	fi, err := os.Lstat(p)
	switch {
	case err != nil: // nothing there, or so deep that nothing below goes there
		return nil
	case !fi.IsDir() || h.Typeflag != tar.TypeDir:
		return os.RemoveAll(p)
	}
	// Two directories become one, which is in all but its entries the upper one.
	return clearXattrs(p)
}

func clearXattrs(p string) error {
	buf := make([]byte, 64<<10)
	n, err := unix.Llistxattr(p, buf)
	if err != nil {
		return err
	}
	for _, name := range strings.Split(string(buf[:n]), "\x00") {
		if name != "" {
			err = errors.Join(err, unix.Lremovexattr(p, name))
		}
	}
	return err
}

// complete does what GNU tar left.
func complete(root string, h *tar.Header, data io.Reader) error {
	p := filepath.Join(root, h.Name)
	for _, name := range []string{"system.posix_acl_access", "system.posix_acl_default"} {
		if v := h.PAXRecords["SCHILY.xattr."+name]; v != "" {
			if err := unix.Setxattr(p, name, []byte(v), 0); err != nil {
				return err
			}
		}
	}
	if !strings.HasSuffix(h.Name, "-odd") {
		return nil
	}
	b, err := io.ReadAll(data)
	if err != nil {
		return err
	}
	return errors.Join(os.WriteFile(p, b, h.FileInfo().Mode().Perm()), os.Chtimes(p, h.ModTime, h.ModTime))
}
