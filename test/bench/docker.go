package main

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
)

// startDocker starts a dockerd that nothing else on the machine notices, with the busybox image in it: its mounts and its
// network are in namespaces of their own, its cgroups below one that goes with it.
func startDocker(ctx context.Context, e env) (*side, error) {
	for _, program := range []string{"docker", "dockerd", "containerd", "runc", "ip", "iptables"} {
		if _, err := exec.LookPath(program); err != nil {
			return nil, err
		}
	}
	if os.Geteuid() != 0 {
		return nil, errors.New("dockerd needs root")
	}
	dir := filepath.Join(e.dir, "docker")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	config := filepath.Join(dir, "daemon.json")
	if err := os.WriteFile(config, []byte("{}"), 0o600); err != nil {
		return nil, err
	}
	cgroup, socket := "cradle-bench-"+strconv.Itoa(os.Getpid()), filepath.Join(dir, "sock")
	cmd, err := apart("ip link set lo up; ", "dockerd", "--data-root", filepath.Join(dir, "root"),
		"--exec-root", filepath.Join(dir, "exec"), "--pidfile", filepath.Join(dir, "pid"), "--host", "unix://"+socket,
		"--storage-driver=overlay2", "--cgroup-parent", "/"+cgroup, "--config-file", config)
	if err != nil {
		return nil, err
	}
	cmd.Env = ownEnv("TMPDIR=" + dir) // where a containerd that is slow to answer writes its stacks
	cmd.SysProcAttr.Unshareflags |= syscall.CLONE_NEWNET
	p, err := launch(ctx, cmd, filepath.Join(e.dir, "docker.log"), func(string) bool { return answers(socket) })
	clean := func() error { return errors.Join(endBelow(dir), removeCgroups(cgroup), os.RemoveAll(dir)) }
	if err != nil {
		return nil, errors.Join(err, clean())
	}
	s := &side{name: "docker", program: "docker", env: ownEnv("DOCKER_HOST=unix://"+socket, "DOCKER_CONFIG="+filepath.Join(dir, "config"))}
	s.pids = func() []int { return []int{cmd.Process.Pid} }
	s.stop = func() error {
		_, err := output(context.Background(), s.env, "sh", "-c", "docker ps -aq | xargs -r docker rm -f")
		return errors.Join(err, p.stop(), clean())
	}
	if err := s.do(ctx, "load", "-q", "-i", filepath.Join(e.images, "busybox.tar")); err != nil {
		return nil, errors.Join(err, s.stop())
	}
	return s, nil
}

func answers(socket string) bool {
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return false
	}
	return conn.Close() == nil
}
