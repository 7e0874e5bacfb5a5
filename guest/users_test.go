package guest

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// TestFileVersion: every change is another version, and one that the next change might not differ from is not relied on.
func TestFileVersion(t *testing.T) {
	path := filepath.Join(t.TempDir(), "passwd")
	if v, known := versionOf(path); v != (fileVersion{}) || !known {
		t.Errorf("nothing: %+v, %v", v, known)
	}
	if err := os.WriteFile(path, []byte("a"), 0o644); err != nil {
		t.Fatal(err)
	}
	first, known := versionOf(path)
	if known {
		t.Error("what has just changed is relied on")
	}
	again := path + ".new"
	if err := os.WriteFile(again, []byte("b"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(again, time.Time{}, time.Unix(0, 0)); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(again, path); err != nil {
		t.Fatal(err)
	}
	if v, _ := versionOf(path); v == first {
		t.Error("another file of the same size is the same version")
	}
	if _, known := versionOf(filepath.Join(path, "x")); known {
		t.Error("what cannot be looked at is relied on")
	}
}

// TestUsers: a user is resolved once while nothing changes.
func TestUsers(t *testing.T) {
	for _, path := range []string{"/etc/passwd", "/etc/group"} {
		if _, known := versionOf(path); !known {
			t.Skipf("%s has just changed", path)
		}
	}
	var u users
	root, err := u.resolve("0", nil, &specs.User{})
	if err != nil {
		t.Fatal(err)
	}
	if again, err := u.resolve("0", nil, &specs.User{}); again != root || err != nil {
		t.Errorf("%p, %v; was %p", again, err, root)
	}
	if other, err := u.resolve("12345:6", nil, &specs.User{}); err != nil || other.uid != 12345 || other.gid != 6 {
		t.Errorf("%+v, %v", other, err)
	}
	u.passwd.inode++
	u.user, u.account = "0", root
	if again, err := u.resolve("0", nil, &specs.User{}); again == root || err != nil {
		t.Errorf("what has changed is believed: %v", err)
	}
}
