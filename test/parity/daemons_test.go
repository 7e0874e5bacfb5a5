package parity

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/cradlevm/cradle/test/house"
)

// newCradle starts a cradle daemon of the test's own and loads the images.
func newCradle(t *testing.T) (*side, house.Build) {
	t.Helper()
	b, err := house.Find([]string{"busybox", "debian"})
	if err != nil && house.Promised() {
		t.Fatal(err)
	} else if err != nil {
		t.Skip(err)
	}
	for _, program := range []string{"docker", "dockerd", "containerd", "runc", "ip"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skip(err)
		}
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root, as dockerd does")
	}
	h, err := house.New(b, "cradle-parity-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			h.DumpLog(t.Output(), 40)
		}
		if err := h.Close(commandLimit); err != nil {
			t.Error(err)
		}
	})
	if err := h.StartDaemon(); err != nil {
		t.Fatal(err)
	}
	s := newSide(t, h.Socket())
	s.load(t, b)
	return s, b
}

// newDockerd starts a dockerd that nothing else on the machine notices: its mounts and its network are in
// namespaces of its own, its cgroups below one that goes with it. Cleanups run last first.
func newDockerd(t *testing.T, b house.Build) *side {
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
	s.load(t, b)
	return s
}

func answers(socket string) bool {
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return false
	}
	return conn.Close() == nil
}

func (s *side) load(t *testing.T, b house.Build) {
	t.Helper()
	for _, name := range []string{"busybox", "debian"} {
		s.must(t, "load -q -i "+b.Image(name))
	}
}

// killBelow ends what a dockerd that was killed has left running: processes of its directory.
func killBelow(t *testing.T, dir string) {
	for _, p := range house.Processes(dir) {
		t.Log("left running by dockerd:", p)
		_ = syscall.Kill(p.PID, syscall.SIGKILL)
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
