package e2e

import (
	"archive/tar"
	"bytes"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// put makes files below dir: "d/" is a directory, "f=text" a file.
func put(t *testing.T, dir string, entries ...string) {
	t.Helper()
	for _, e := range entries {
		name, text, isFile := strings.Cut(e, "=")
		name = filepath.Join(dir, name)
		err := os.MkdirAll(name, 0o755)
		if isFile {
			_ = os.Remove(name)
			if err = os.MkdirAll(filepath.Dir(name), 0o755); err == nil {
				err = os.WriteFile(name, []byte(text), 0o644)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// cpCase is a row of docker's rules for cp. {l} and {c} are the local directory and the container's.
type cpCase struct {
	from, to string
	files    string // which files must be there afterwards, with their texts
	fails    string
}

// cpRules are the same in both directions: what is copied lies at s on one side, what it meets at d on the other.
// s/f is a file, s/dir/g a file in a directory; d is a directory with a file in it, d/is.
var cpRules = []cpCase{
	{"s/f", "d/new", "d/new=F", ""},
	{"s/f", "d/is", "d/is=F", ""},
	{"s/f", "d", "d/f=F", ""},
	{"s/f", "d/", "d/f=F", ""},
	{"s/f", "d/no/", "", "no such directory"},
	{"s/f", "d/no/new", "", "no such directory"},
	{"s/dir", "d/new", "d/new/g=G", ""},
	{"s/dir/.", "d/new", "d/new/g=G", ""},
	{"s/dir", "d/is", "", "cannot copy directory"},
	{"s/dir", "d", "d/dir/g=G", ""},
	{"s/dir/", "d", "d/dir/g=G", ""},
	{"s/dir/.", "d", "d/g=G", ""},
	{"s/no", "d", "", "no such file"},
}

// TestCp runs docker's table of cp's rules, into a running container and out of a stopped one.
func TestCp(t *testing.T) {
	both(t, func(t *testing.T, c client) {
		name := c.name(t)
		c.ok(t, "run", "-d", "--name", name, "busybox", "sleep", "1000")
		for i, rule := range cpRules {
			local := t.TempDir()
			put(t, local, "s/f=F", "s/dir/g=G")
			inside := "/in" + string(rune('a'+i))
			c.ok(t, "exec", name, "sh", "-c", "mkdir -p "+inside+"/d; echo -n IS >"+inside+"/d/is")
			r := c.do(t, nil, "cp", "-q", keepEnd(local, rule.from), name+":"+inside+"/"+rule.to)
			checkCp(t, "in", rule, r)
			if path, text, ok := strings.Cut(rule.files, "="); ok {
				if got := c.do(t, nil, "exec", name, "cat", inside+"/"+path); got.stdout != text {
					t.Errorf("in: cp %s %s: %s says %q %s", rule.from, rule.to, path, got.stdout, got.stderr)
				}
			}
		}
		c.ok(t, "exec", name, "sh", "-c", "mkdir -p /out/s/dir; cd /out/s; echo -n F >f; echo -n G >dir/g; ln -s dir link")
		c.ok(t, "stop", "-t", "0", name)
		for _, rule := range cpRules {
			local := t.TempDir()
			put(t, local, "d/is=IS")
			r := c.do(t, nil, "cp", "-q", name+":/out/"+rule.from, keepEnd(local, rule.to))
			checkCp(t, "out", rule, r)
			if path, text, ok := strings.Cut(rule.files, "="); ok {
				if got, err := os.ReadFile(filepath.Join(local, path)); string(got) != text {
					t.Errorf("out: cp %s %s: %s says %q, %v", rule.from, rule.to, path, got, err)
				}
			}
		}
		// Links, and the progress of one copied without -q.
		local := t.TempDir()
		c.ok(t, "cp", name+":/out/s/link", local+"/kept")
		c.ok(t, "cp", "-L", name+":/out/s/link", local+"/followed")
		if to, err := os.Readlink(local + "/kept"); to != "dir" {
			t.Errorf("the link: %q %v", to, err)
		}
		if b, err := os.ReadFile(local + "/followed/g"); string(b) != "G" {
			t.Errorf("with -L: %q %v", b, err)
		}
	})
}

// keepEnd joins without cleaning away what the end of a path says.
func keepEnd(dir, p string) string { return dir + "/" + p }

func checkCp(t *testing.T, way string, rule cpCase, r result) {
	t.Helper()
	failed := r.code != 0
	if failed != (rule.fails != "") {
		t.Errorf("%s: cp %s %s: code %d, %s", way, rule.from, rule.to, r.code, r.stderr)
		return
	}
	words := strings.ToLower(r.stderr)
	if failed && !strings.Contains(words, rule.fails) && !strings.Contains(words, "could not find the file") &&
		!strings.Contains(words, "no such file") && !strings.Contains(words, "does not exist") {
		t.Errorf("%s: cp %s %s: %q", way, rule.from, rule.to, r.stderr)
	}
}

func TestCpStreams(t *testing.T) {
	both(t, func(t *testing.T, c client) {
		name := c.name(t)
		c.ok(t, "create", "--name", name, "-v", "/volume", "--tmpfs", "/tmpfs", "busybox", "cat", "/volume/a/f")
		var b bytes.Buffer
		tw := tar.NewWriter(&b)
		for _, h := range []tar.Header{
			{Typeflag: tar.TypeDir, Name: "a/", Mode: 0o750, Uid: 3, Gid: 4},
			{Typeflag: tar.TypeReg, Name: "a/f", Mode: 0o640, Uid: 5, Gid: 6, Size: 4},
		} {
			if err := tw.WriteHeader(&h); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := tw.Write([]byte("text")); err != nil {
			t.Fatal(err)
		}
		_ = tw.Close()
		// Into a volume of a container that has never run, and out again.
		if r := c.do(t, b.Bytes(), "cp", "-", name+":/volume"); r.code != 0 {
			t.Fatal(r.stderr)
		}
		r := c.do(t, nil, "cp", name+":/volume/a", "-")
		tr := tar.NewReader(strings.NewReader(r.stdout))
		if h, err := tr.Next(); err != nil || h.Name != "a/" || h.Uid != 3 || h.Mode != 0o40750 { // with the kind of file, as docker has it
			t.Errorf("%+v %v", h, err)
		}
		if h, err := tr.Next(); err != nil || h.Name != "a/f" || h.Gid != 6 || h.Size != 4 {
			t.Errorf("%+v %v", h, err)
		}
		if _, err := io.Copy(io.Discard, tr); err != nil {
			t.Error(err)
		}
		if got := c.ok(t, "start", "-a", name); got != "text" {
			t.Errorf("the volume at the start: %q", got)
		}
		for _, bad := range []struct{ to, want string }{
			{"/etc/passwd", "must be a directory"}, {"/no/where", "must be a directory"},
		} {
			if r := c.do(t, b.Bytes(), "cp", "-", name+":"+bad.to); r.code == 0 || !strings.Contains(r.stderr, bad.want) {
				t.Errorf("to %s: %+v", bad.to, r)
			}
		}
		if r := c.do(t, []byte(strings.Repeat("garbage ", 500)), "cp", "-", name+":/"); r.code == 0 {
			t.Errorf("garbage: %+v", r)
		}
	})
}

func TestDiffCommitExport(t *testing.T) {
	both(t, func(t *testing.T, c client) {
		name := c.name(t)
		c.ok(t, "run", "-d", "--name", name, "-v", "/volume", "busybox", "sh", "-c",
			"mkdir /new; echo hi >/new/f; rm /bin/yes; echo x >>/etc/group; echo v >/volume/f; touch /ready; exec sleep 1000")
		c.ok(t, "exec", name, "sh", "-c", "while ! [ -e /ready ]; do sleep 0.1; done")
		want := "C /bin\nD /bin/yes\nC /etc\nC /etc/group\nA /new\nA /new/f\nA /ready"
		diff := strings.Split(c.ok(t, "diff", name), "\n")
		diff = slices.DeleteFunc(diff, func(s string) bool { return s == "C /etc" })
		if got := strings.Join(diff, "\n"); got != strings.Replace(want, "C /etc\n", "", 1) {
			t.Errorf("diff:\n%s", got)
		}

		image := strings.ToLower(name)
		t.Cleanup(func() { c.do(t, nil, "rmi", "-f", image+":c", image+":stopped", image+":flat") })
		id := c.ok(t, "commit", "-a", "me", "-m", "why", "-c", "ENV A=b", "-c", `CMD ["sh","-c","cat /new/f; echo $A; ls /bin/yes /volume/f"]`, name, image+":c")
		if got := c.ok(t, "inspect", "-f", "{{.Id}} {{.Author}} {{.Comment}} {{len .RootFS.Layers}}", image+":c"); got != id+" me why 2" {
			t.Errorf("the image: %q", got)
		}
		r := c.do(t, nil, "run", "--rm", image+":c")
		if r.stdout != "hi\nb\n" || !strings.Contains(r.stderr, "/bin/yes: No such file") || !strings.Contains(r.stderr, "/volume/f: No such file") {
			t.Errorf("the committed image: %+v", r)
		}
		if got := c.ok(t, "exec", name, "echo", "on"); got != "on" {
			t.Errorf("after the commit: %q", got)
		}

		c.ok(t, "stop", "-t", "0", name)
		c.ok(t, "commit", name, image+":stopped")
		if got := c.ok(t, "run", "--rm", image+":stopped", "cat", "/new/f"); got != "hi" {
			t.Errorf("committed stopped: %q", got)
		}
		exported := filepath.Join(t.TempDir(), "all.tar")
		c.ok(t, "export", "-o", exported, name)
		c.ok(t, "import", exported, image+":flat")
		if r := c.do(t, nil, "run", "--rm", image+":flat", "sh", "-c", "cat /new/f; ls /volume; ls /bin/yes"); r.stdout != "hi\n" {
			t.Errorf("exported and imported: %+v", r)
		}
		if r := c.do(t, nil, "rm", name); r.code != 0 {
			t.Errorf("rm after work on the files: %+v", r)
		}
	})
}

func TestPausedAndUpdate(t *testing.T) {
	both(t, func(t *testing.T, c client) {
		name := c.name(t)
		c.ok(t, "run", "-d", "--name", name, "-m", "64m", "busybox", "sh", "-c", "while :; do date +%s%N >/now; done")
		c.ok(t, "exec", name, "sh", "-c", "while ! [ -s /now ]; do sleep 0.1; done")
		c.ok(t, "pause", name)
		first, second := c.ok(t, "cp", name+":/now", "-"), c.ok(t, "cp", name+":/now", "-")
		if first != second || len(first) < 500 {
			t.Error("a paused container went on while its files were read")
		}
		c.ok(t, "unpause", name)
		now := c.ok(t, "exec", name, "cat", "/now")
		c.ok(t, "exec", name, "sh", "-c", "while [ \"$(cat /now)\" = '"+now+"' ]; do sleep 0.1; done")

		c.ok(t, "update", "-m", "32m", "--memory-swap", "64m", "--pids-limit", "77", "--cpus", "0.5", "--restart", "always", name)
		got := c.ok(t, "exec", name, "sh", "-c", "cd /sys/fs/cgroup; cat memory.max pids.max cpu.max")
		if got != "33554432\n77\n50000 100000" {
			t.Errorf("limits: %q", got)
		}
		if got := c.ok(t, "inspect", "-f", "{{.HostConfig.Memory}} {{.HostConfig.PidsLimit}} {{.HostConfig.NanoCpus}} {{.HostConfig.RestartPolicy.Name}}", name); got != "33554432 77 500000000 always" {
			t.Errorf("inspect: %q", got)
		}
		if r := c.do(t, nil, "update", "-m", "9g", "--memory-swap", "-1", name); r.code != 1 || !strings.Contains(r.stderr, "virtual machine has") {
			t.Errorf("more than the VM has: %+v", r)
		}
	})
}
