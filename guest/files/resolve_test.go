package files

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// What is missing on the way can be made: where links lead inside the root, and nowhere else.
func TestResolveMakes(t *testing.T) {
	for p, want := range map[string]string{
		"/a/b":          "/a/b",
		"/new/deep/er/": "/new/deep/er",
		"/new/.":        "/new",
		"/abs/x":        "/a/x",
		"/dangling":     "/run/stub",
		"/up/x":         "/a/x",
		"/a/../../x":    "/x",
	} {
		t.Run(p, func(t *testing.T) {
			dir, root := rootDir(t)
			tree(t, dir, "a/b/", "abs -> /a", "dangling -> ../run/stub", "up -> ../../../../a", "loop -> loop", "file=x")
			var made []string
			got, err := Resolve(root, p, func(at string, last bool, err error) error {
				if err != unix.ENOENT {
					return err
				}
				if made = append(made, at); last != (at == want) {
					t.Errorf("%s: %s last %t", p, at, last)
				}
				return os.Mkdir(filepath.Join(dir, at), 0o755)
			})
			if got != want || err != nil {
				t.Errorf("%s: %s %v, want %s", p, got, err, want)
			}
			if fi, err := os.Lstat(filepath.Join(dir, want)); err != nil || !fi.IsDir() {
				t.Errorf("%s: %s is not there: %v; made %v", p, want, err, made)
			}
			if all, _ := os.ReadDir(filepath.Dir(dir)); len(all) != 1 {
				t.Errorf("%s: outside: %v", p, all)
			}
		})
	}
}

func TestResolveFails(t *testing.T) {
	dir, root := rootDir(t)
	tree(t, dir, "loop -> loop", "file=x")
	for p, want := range map[string]error{
		"/loop": unix.ELOOP, "/file/x": unix.ENOTDIR, "/" + strings.Repeat("x", 300): unix.ENAMETOOLONG, "/missing/x": unix.ENOENT,
	} {
		if got, err := Resolve(root, p, func(_ string, _ bool, err error) error { return err }); !errors.Is(err, want) || got != "" {
			t.Errorf("%.20s: %s %v, want %v", p, got, err, want)
		}
	}
}
