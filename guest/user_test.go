package guest

import (
	"slices"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

const (
	testPasswd = "root:x:0:0:root:/root:/bin/sh\n# comment\n\nbroken\nneg:x:-1:0::/:\napp:x:1000:1001:App,,,:/home/app:/bin/sh\n123:x:77:78::/n:\n"
	testGroup  = "root:x:0:\nbad:x:y:app\napp:x:1001:\nstaff:x:50:app,root\nwheel:x:10: app ,x\n"
)

func TestLookupUser(t *testing.T) {
	for _, c := range []struct {
		user, err string
		uid, gid  uint32
		groups    []uint32
		home      string
	}{
		{user: "app", uid: 1000, gid: 1001, groups: []uint32{50, 10}, home: "/home/app"},
		{user: "app:root", uid: 1000, gid: 0, home: "/home/app"},
		{user: "1000", uid: 1000, gid: 1001, groups: []uint32{50, 10}, home: "/home/app"},
		{user: "123", uid: 77, gid: 78, home: "/n"}, // a name that looks like a number
		{user: "4000:5000", uid: 4000, gid: 5000},
		{user: ":staff", uid: 0, gid: 50, home: "/root"},
		{user: "neg", err: "unable to find user neg: no matching entries in passwd file"},
		{user: "app:bad", err: "unable to find group bad: no matching entries in group file"},
		{user: "4294967296", err: "uids and gids must be in range 0-2147483647"},
	} {
		a, err := lookupUser(c.user, []byte(testPasswd), []byte(testGroup))
		if err != nil {
			if err.Error() != c.err {
				t.Errorf("%s: %v", c.user, err)
			}
			continue
		}
		if c.err != "" || a.uid != c.uid || a.gid != c.gid || a.home != c.home || !slices.Equal(a.groups, c.groups) {
			t.Errorf("%s: %+v", c.user, a)
		}
	}
}

// FuzzUsers: no passwd or group file can make the agent fail other than by an error, or grow without bound.
func FuzzUsers(f *testing.F) {
	f.Add("app:staff", []byte(testPasswd), []byte(testGroup))
	f.Add("0", []byte(":::::::\n"), []byte(":::\n,,,"))
	f.Fuzz(func(t *testing.T, user string, passwd, group []byte) {
		a, err := lookupUser(user, passwd, group)
		if (a == nil) && (err == nil) {
			t.Fatal("neither a user nor an error")
		}
		if err == nil && (a.uid > 1<<31-1 || a.gid > 1<<31-1 || len(a.groups) > 65536) {
			t.Fatalf("%+v", a)
		}
	})
}

// FuzzMountOptions: what is parsed names no flag twice over and keeps the data within a page.
func FuzzMountOptions(f *testing.F) {
	f.Add("ro", "nosuid", "mode=755")
	f.Add("rbind", "rprivate", "rw")
	f.Fuzz(func(t *testing.T, a, b, c string) {
		if o, err := parseMountOptions([]string{a, b, c}); err == nil && len(o.data) >= 4096 {
			t.Fatalf("%d bytes of data", len(o.data))
		}
	})
}

func TestMountOptions(t *testing.T) {
	o, err := parseMountOptions([]string{"nosuid", "ro", "rw", "noexec", "exec", "mode=1777", "rslave", "size=1m"})
	if err != nil || o.flags != 2 || o.data != "mode=1777,size=1m" || len(o.propagation) != 1 {
		t.Errorf("%+v, %v", o, err)
	}
	if _, err := parseMountOptions([]string{"idmap"}); err == nil {
		t.Error("idmap was taken")
	}
}

func TestLimitsParse(t *testing.T) {
	if _, err := rlimits(&specs.Process{Rlimits: []specs.POSIXRlimit{{Type: "RLIMIT_X"}}}); err == nil {
		t.Error("RLIMIT_X was taken")
	}
	if set, err := parseCPUs("0-2,5"); err != nil || set.Count() != 4 || !set.IsSet(5) {
		t.Errorf("%v, %v", set, err)
	}
	for _, bad := range []string{"x", "3-1", "-1", "9999", "1,"} {
		if _, err := parseCPUs(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}
