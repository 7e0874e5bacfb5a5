package parity

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// newCradle starts a cradle daemon of the test's own and loads the images.
func newCradle(t *testing.T) *side {
	t.Helper()
	top, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	or := func(name, fallback string) string {
		if v := os.Getenv(name); v != "" {
			return v
		}
		return filepath.Join(top, fallback)
	}
	bin, guest, images := or("CRADLE_TEST_BIN", "bin"), or("CRADLE_GUEST", "out/guest"), or("CRADLE_TEST_IMAGES", "out/images")
	promised := os.Getenv("CRADLE_TEST_BIN") != ""
	for _, path := range []string{filepath.Join(bin, "cradle"), filepath.Join(guest, "manifest"), filepath.Join(images, "debian.tar")} {
		if _, err := os.Stat(path); err != nil && !promised {
			t.Skip(err, "(make build guest images)")
		} else if err != nil {
			t.Fatal(err)
		}
	}
	for _, program := range []string{"qemu-system-x86_64", "docker", "dockerd", "containerd", "runc", "ip"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skip(err)
		}
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root, as dockerd does")
	}
	dir := tempDir(t)
	socket := filepath.Join(dir, "run", "cradle.sock")
	s := newSide(t, socket)
	env := append(s.env[:len(s.env):len(s.env)],
		"CRADLE_ROOT="+filepath.Join(dir, "root"), "CRADLE_RUN="+filepath.Join(dir, "run"), "CRADLE_GUEST="+guest)
	cmd := exec.Command(filepath.Join(bin, "cradle"), "daemon")
	cmd.Env, cmd.SysProcAttr = env, &syscall.SysProcAttr{Setsid: true}
	daemon(t, cmd, func() bool { return answers(socket) })
	t.Cleanup(func() {
		reset := exec.Command(filepath.Join(bin, "cradle"), "system", "reset", "--force")
		reset.Env = env
		if out, err := reset.CombinedOutput(); err != nil {
			t.Errorf("system reset: %v: %s", err, out)
		}
	})
	s.load(t, images)
	return s
}

// newDockerd starts a dockerd that nothing else on the machine notices: its mounts and its network are in
// namespaces of its own, its cgroups below one that goes with it. Cleanups run last first.
func newDockerd(t *testing.T) *side {
	t.Helper()
	dir := tempDir(t)
	t.Cleanup(func() { killBelow(t, dir) })
	cgroup := "cradle-parity-" + strconv.Itoa(os.Getpid())
	t.Cleanup(func() { removeCgroups(cgroup) })
	socket := filepath.Join(dir, "sock")
	// The network has but its loopback, and that has to be up for what fails there to fail as it does elsewhere.
	cmd := exec.Command("sh", "-c", `ip link set lo up; exec "$0" "$@"`, "dockerd", "--data-root", filepath.Join(dir, "root"), "--exec-root", filepath.Join(dir, "exec"),
		"--pidfile", filepath.Join(dir, "pid"), "--host", "unix://"+socket, "--bridge=none", "--iptables=false",
		"--storage-driver=overlay2", "--cgroup-parent", "/"+cgroup, "--config-file", filepath.Join(dir, "none.json"))
	if err := os.WriteFile(filepath.Join(dir, "none.json"), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Unshareflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS}
	daemon(t, cmd, func() bool { return answers(socket) })
	s := newSide(t, socket)
	t.Cleanup(func() {
		list := exec.Command("sh", "-c", "docker ps -aq | xargs -r docker rm -f")
		list.Env = s.env
		if out, err := list.CombinedOutput(); err != nil {
			t.Errorf("removing what is left: %v: %s", err, out)
		}
	})
	s.load(t, os.Getenv("CRADLE_TEST_IMAGES"))
	return s
}

func answers(socket string) bool {
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return false
	}
	return conn.Close() == nil
}

func (s *side) load(t *testing.T, images string) {
	t.Helper()
	if images == "" {
		images, _ = filepath.Abs("../../out/images")
	}
	for _, name := range []string{"busybox", "debian"} {
		s.must(t, "load -q -i "+filepath.Join(images, name+".tar"))
	}
}

// killBelow ends what a dockerd that was killed has left running: processes that name its directory.
func killBelow(t *testing.T, dir string) {
	procs, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range procs {
		cmdline, _ := os.ReadFile(p + "/cmdline")
		pid, err := strconv.Atoi(filepath.Base(p))
		if err != nil || pid == os.Getpid() || !strings.Contains(string(cmdline), dir+"/") {
			continue
		}
		t.Log("left running by dockerd:", strings.ReplaceAll(string(cmdline), "\x00", " "))
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
}

// removeCgroups removes the empty cgroups that dockerd made, in every hierarchy.
func removeCgroups(name string) {
	for range 20 {
		left := 0
		for _, pattern := range []string{"/sys/fs/cgroup/%s", "/sys/fs/cgroup/*/%s"} {
			dirs, _ := filepath.Glob(fmt.Sprintf(pattern, name))
			for _, dir := range dirs {
				if subs, _ := filepath.Glob(dir + "/*/cgroup.procs"); len(subs) > 0 || syscall.Rmdir(dir) != nil {
					left++
				}
			}
		}
		if left == 0 {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
}
