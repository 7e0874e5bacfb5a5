// Package hardimage has a test only: an image that is hard to get right, seen from inside a container by every kernel
// and in every form, compared path by path with what GNU tar makes of the same layers.
package hardimage

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/moby/moby/api/types/container"

	"github.com/cradlevm/cradle/api"
	"github.com/cradlevm/cradle/erofs/erofstest"
	"github.com/cradlevm/cradle/guestos"
	"github.com/cradlevm/cradle/image"
	"github.com/cradlevm/cradle/image/imagetest"
	"github.com/cradlevm/cradle/node/runspec"
	"github.com/cradlevm/cradle/sandbox"
	"github.com/cradlevm/cradle/vm"
	"github.com/cradlevm/cradle/vm/qemu"
	"github.com/cradlevm/cradle/volume"
)

// limit is for one kernel and form on a slow machine that emulates its virtual machines.
const limit = 10 * time.Minute

// hiddenLink is a second name of a file whose first one a higher layer replaces.
const hiddenLink = "links/hidden"

// TestHardImage runs the walker over the container's root twice: first as the layers are, then copying up each path
// as it comes to it.
func TestHardImage(t *testing.T) {
	guests := findGuests(t)
	dir := t.TempDir()
	walker := filepath.Join(dir, "walk")
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", walker, "./walk")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the walker: %v\n%s", err, out)
	}
	layers := [][]byte{baseLayer(t), hardLayer(t), topLayer(t, walker)}
	out, err := exec.Command(walker, reference(t, layers...)).Output()
	if err != nil {
		t.Fatalf("walk the reference: %v", err)
	}
	want := parse(t, out)
	witness(t, want)
	store, img := load(t, filepath.Join(dir, "store"), layers)
	for _, g := range guests {
		for _, form := range []string{"tarindex", "plain"} {
			t.Run(g.Release+"/"+form, func(t *testing.T) {
				t.Parallel()
				img := img
				if form == "plain" {
					var err error
					if img, err = store.Plain(t.Context(), img); err != nil {
						t.Fatal(err)
					}
				} else if !g.Erofs512 {
					t.Skip("this kernel mounts no 512-byte blocks (6.4): its images are plain ones")
				}
				c := start(t, g, img)
				for _, pass := range []pass{{"as layers", []string{"/walk", "/"}, false}, {"copied up", []string{"/walk", "-touch", "/"}, true}} {
					begun := time.Now()
					got := parse(t, c.run(t, pass.args))
					n := compare(t, got, want, c.mounts(), pass)
					t.Logf("%s: %d paths compared, %d differ; %v", pass.name, len(want), n, time.Since(begun).Round(time.Millisecond))
				}
			})
		}
	}
}

// witness checks that the reference has what makes the image hard, so that to be like it means something.
func witness(t *testing.T, want map[string]facts) {
	t.Helper()
	if len(want) < erofstest.BigDirEntries {
		t.Errorf("%d paths", len(want))
	}
	for path, f := range map[string]facts{
		"/attrs/cap":                         {"xattr security.capability": erofstest.CapNetRaw},
		"/attrs/basecap":                     {"xattr security.capability": erofstest.CapNetRaw},
		"/attrs/dir":                         {"xattr trusted.d": "t", "xattr user.base": ""},
		"/attrs/acldir":                      {"type": "dir"},
		"/files/1":                           {"type": "file", "size": "1"},
		"/files/block":                       {"type": "block", "rdev": "259:70000"},
		"/files/null":                        {"type": "char", "rdev": "1:3"},
		"/files/replaced":                    {"size": "14"},
		"/links/a":                           {"nlink": "3", "first": "/files/c"},
		"/owners/4294967294":                 {"owner": "4294967294:4294967288"},
		"/owners/t-1.500000000":              {"mtime": "-1.500000000"},
		"/sparse/own":                        {"type": "file"},
		"/untouched":                         {"mode": "02751", "owner": "0:0", "mtime": "-1.000000005"},
		"/untouched/file":                    {"type": "file"},
		"/whiteouts":                         {"xattr user.base": ""},
		"/whiteouts/again/own":               {"type": "file"},
		"/whiteouts/opaque/own":              {"type": "file"},
		"/whiteouts/seen":                    {"type": "file"},
		"/whiteouts/there":                   {"size": "5"},
		"/names/deep/d/base":                 {"type": "file"},
		"/names/" + strings.Repeat("n", 255): {"type": "file"},
		"/whiteouts/gone":                    nil,
		"/whiteouts/again/below":             nil,
		"/whiteouts/opaque/below":            nil,
		"/files/513":                         nil,
		"/files/again":                       nil,
		"/sparse/0.0-many":                   nil,
		"/untouched/for-the-top":             nil,
	} {
		got, ok := want[path]
		if ok != (f != nil) {
			t.Errorf("%.100q is there: %t", path, ok)
		}
		for n, v := range f {
			if got[n] != v {
				t.Errorf("%.100q: %s is %q, not %q", path, n, got[n], v)
			}
		}
	}
	longest, old := 0, 0
	for path, f := range want {
		longest = max(longest, len(path))
		if strings.HasPrefix(f["mtime"], "-") {
			old++
		}
		if strings.Contains(path, "/.wh.") {
			t.Errorf("marker %.100q", path)
		}
	}
	if longest < 4050 || old < 3 {
		t.Errorf("the longest path has %d bytes, %d files are from before 1970", longest, old)
	}
}

// findGuests opens our guest and those of CRADLE_GUEST_DEBIAN (a list like PATH), one of each release, or skips the
// test. With all promised (make test), what is missing is an error.
func findGuests(t *testing.T) []guestos.Guest {
	t.Helper()
	if testing.Short() {
		t.Skip("boots virtual machines")
	}
	missing := t.Skipf
	list := filepath.SplitList(os.Getenv("CRADLE_GUEST_DEBIAN"))
	if g := os.Getenv("CRADLE_GUEST"); g != "" {
		missing, list = t.Fatalf, append([]string{g}, list...)
	} else {
		list = append([]string{"../../out/guest"}, list...)
	}
	if os.Geteuid() != 0 {
		missing("needs root")
	}
	for _, program := range []string{"qemu-system-x86_64", "tar"} {
		if _, err := exec.LookPath(program); err != nil {
			missing("%v", err)
		}
	}
	var guests []guestos.Guest
	for _, dir := range list {
		g, err := guestos.Open(dir)
		if err != nil {
			missing("%v", err)
		}
		if !slices.ContainsFunc(guests, func(o guestos.Guest) bool { return o.Release == g.Release }) {
			guests = append(guests, g)
		}
	}
	return guests
}

// load makes the layers an image of a store of its own.
func load(t *testing.T, dir string, layers [][]byte) (*image.Local, image.Image) {
	t.Helper()
	made, err := imagetest.Image(v1.Config{Cmd: []string{"/walk", "/"}}, layers...)
	if err != nil {
		t.Fatal(err)
	}
	var archive bytes.Buffer
	if err := imagetest.WriteDockerArchive(&archive, "hard:1", made); err != nil {
		t.Fatal(err)
	}
	store, err := image.Open(dir, image.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	images, err := store.Load(t.Context(), &archive, nil)
	if err != nil {
		t.Fatal(err)
	}
	return store, images[0]
}

// box is one container in a sandbox of its own.
type box struct {
	vm      *sandbox.Sandbox
	request api.CreateRequest
	base    runspec.Container
	execs   int
}

// start boots the guest and starts a container of the image that waits.
func start(t *testing.T, g guestos.Guest, img image.Image) *box {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	dir := t.TempDir()
	scratch := filepath.Join(dir, "scratch.ext4")
	if err := (&volume.Scratch{Dir: dir}).New(ctx, scratch, 1<<30); err != nil {
		t.Fatal(err)
	}
	host := &container.HostConfig{Privileged: true}
	config := &container.Config{Cmd: []string{"/walk", "-wait"}}
	c, _, err := runspec.Prepare(strings.Repeat("cafe", 16), config, host, runspec.Settings{})
	if err != nil {
		t.Fatal(err)
	}
	b := &box{base: c}
	if b.request, err = runspec.Create(c, runspec.Settings{}); err != nil {
		t.Fatal(err)
	}
	run := filepath.Join(dir, "run")
	if err := os.Mkdir(run, 0o700); err != nil {
		t.Fatal(err)
	}
	var disks []vm.Disk
	for i, l := range img.Layers {
		d := vm.Disk{Serial: fmt.Sprintf("layer%d", i), Path: l.Path, ReadOnly: true}
		disks = append(disks, d)
		b.request.Rootfs.Layers = append(b.request.Rootfs.Layers, api.Disk{Serial: d.Serial, FSType: "erofs"})
	}
	disks = append(disks, vm.Disk{Serial: "scratch", Path: scratch})
	b.request.Rootfs.Upper = &api.Disk{Serial: "scratch", FSType: "ext4"}
	begun := time.Now()
	b.vm, err = sandbox.Start(ctx, qemu.New(qemu.Options{}), sandbox.Config{
		Token: sandbox.NewToken(), Hostname: "hard",
		VM: vm.Config{ID: "hardimage", Dir: run, CPUs: 1, Memory: 512 << 20, Kernel: g.Kernel, Initrd: g.Initrd, Disks: disks},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.end(t, dir) })
	if _, _, err := b.vm.Run(ctx, b.request); err != nil {
		t.Fatalf("%v; console: %s", err, b.vm.Console(2000))
	}
	t.Logf("booted and started in %v", time.Since(begun).Round(time.Millisecond))
	return b
}

// end deletes the container and its VM, and looks for what is left of them.
func (b *box) end(t *testing.T, dir string) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	pid := b.vm.PID()
	if err := b.vm.Delete(ctx, api.ProcessRef{ID: b.request.ID}); err != nil {
		t.Errorf("delete the container: %v", err)
	}
	if t.Failed() {
		t.Logf("console: %s", b.vm.Console(2000))
	}
	if err := b.vm.Stop(ctx); err != nil {
		t.Errorf("stop the VM: %v", err)
	}
	if err := b.vm.Cause(); err != nil {
		t.Errorf("the VM ended with: %v", err)
	}
	if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("the monitor, process %d, is left: %v", pid, err)
	}
	for _, file := range []string{"/proc/self/mountinfo", "/proc/net/unix"} {
		if list, err := os.ReadFile(file); err != nil || bytes.Contains(list, []byte(dir)) {
			t.Errorf("%s still has something in %s (%v)", file, dir, err)
		}
	}
}

// run runs a program in the container and returns what it printed.
func (b *box) run(t *testing.T, args []string) []byte {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	b.execs++
	r, err := runspec.Exec(b.base, fmt.Sprintf("walk%d", b.execs), container.ExecCreateRequest{Cmd: args, Privileged: true})
	if err != nil {
		t.Fatal(err)
	}
	output, _, err := b.vm.Exec(ctx, r)
	if err != nil {
		t.Fatal(err)
	}
	defer output.Close()
	defer context.AfterFunc(ctx, func() { output.Close() })()
	var out bytes.Buffer
	for {
		stream, payload, _, err := output.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatalf("output of %v: %v", args, err)
		}
		if stream == api.Stderr {
			t.Logf("%s", payload)
		} else {
			out.Write(payload)
		}
		if err := output.Acknowledge(); err != nil {
			t.Fatal(err)
		}
	}
	if st, ended := output.Exit(); !ended || st.Code != 0 {
		t.Fatalf("%v: %+v", args, st)
	}
	return out.Bytes()
}

// mounts are the paths at which the container has other filesystems than the image's.
func (b *box) mounts() map[string]bool {
	at := map[string]bool{}
	for _, m := range b.request.Spec.Mounts {
		at[m.Destination] = true
	}
	for _, f := range b.request.Files {
		at[f.Path] = true
	}
	return at
}

// facts are what the walker says of a path, by name.
type facts map[string]string

// parse reads the walker's output.
func parse(t *testing.T, out []byte) map[string]facts {
	t.Helper()
	all := map[string]facts{}
	whole := false
	s := bufio.NewScanner(bytes.NewReader(out))
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		if whole = s.Text() == "end"; whole {
			continue
		}
		var words []string
		for _, q := range strings.Split(s.Text(), "\t") {
			w, err := strconv.Unquote(q)
			if err != nil {
				t.Fatalf("the walker printed %.200q", s.Text())
			}
			words = append(words, w)
		}
		f := facts{}
		for i := 1; i+1 < len(words); i += 2 {
			f[words[i]] = words[i+1]
		}
		all[words[0]] = f
	}
	if s.Err() != nil || !whole {
		t.Fatalf("the walker's output is not whole (%d paths): %v", len(all), s.Err())
	}
	return all
}

// pass is one run of the walker.
type pass struct {
	name     string
	args     []string
	copiedUp bool
}

// compare reports what got has other than want, and how many paths that is.
func compare(t *testing.T, got, want map[string]facts, mounts map[string]bool, p pass) (differ int) {
	t.Helper()
	report := func(format string, args ...any) {
		if differ++; differ <= 30 {
			t.Errorf(p.name+": "+format, args...)
		}
	}
	for path, w := range want {
		g, ok := got[path]
		switch {
		case !ok:
			report("%.200q is missing", path)
		case mounts[path] && g["type"] == "mount": // what is there is not the image's
		default:
			if lines := differences(path, g, w, p); len(lines) > 0 {
				report("%.200q:\n%s", path, strings.Join(lines, "\n"))
			}
		}
	}
	for path := range got {
		if _, ok := want[path]; !ok {
			report("%.200q is too many", path)
		}
	}
	return differ
}

// differences are the facts of a path that are not as in the reference, but for those with a reason.
func differences(path string, got, want facts, p pass) (lines []string) {
	names := map[string]bool{}
	for n := range got {
		names[n] = true
	}
	for n := range want {
		names[n] = true
	}
	for _, n := range slices.Sorted(maps.Keys(names)) {
		g, inGot := got[n]
		w, inWant := want[n]
		if g == w && inGot == inWant || reason(path, n, g, want, p) != "" {
			continue
		}
		lines = append(lines, fmt.Sprintf("\t%s is %.200q (%t), want %.200q (%t)", n, g, inGot, w, inWant))
	}
	return lines
}

// linked tells whether the layer that has the file has other names for it too.
func linked(path string, want facts) bool {
	return want["type"] != "dir" && want["nlink"] != "1" || path == "/"+hiddenLink || path == "/links/below"
}

// reason says why a fact may differ, or "" when it may not. This is the whole list.
func reason(path, fact, got string, want facts, p pass) string {
	switch {
	case want["type"] == "dir" && fact == "size":
		return "each file system has its own idea of a directory's size"
	case want["type"] == "dir" && fact == "nlink" && got == "1":
		return "a directory of overlayfs has 1 link: counting its subdirectories would need reading all layers"
	case path == "/" && fact == "mtime":
		return "the root directory is the writable layer's own, made with the container, with docker too"
	case !p.copiedUp && fact == "nlink" && got == "2" && (path == "/"+hiddenLink || path == "/links/below"):
		return "overlayfs reports the links that the file has in its layer; here a higher layer hides one of the two"
	case p.copiedUp && linked(path, want) && (fact == "nlink" && got == "1" || fact == "first" && got == "" || fact == "inode"):
		return "overlayfs copies up one name of a file (index=off, with docker too), which is then a file of its own"
	}
	return ""
}
