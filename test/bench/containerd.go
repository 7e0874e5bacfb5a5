package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
)

// containerd is a containerd under measurement, with nothing in it but what was imported.
type containerd struct {
	ctr, socket, dir, namespace string
	process                     *process
}

// startContainerd starts one in a directory of its own; its mounts are in a namespace of their own. Without the CRI
// plugins, which are for Kubernetes.
func startContainerd(ctx context.Context, e env, name string) (*containerd, error) {
	switch {
	case e.containerd == "":
		return nil, errors.New("no containerd was given (-containerd)")
	case os.Geteuid() != 0:
		return nil, errors.New("containerd needs root")
	}
	if _, err := exec.LookPath("runc"); err != nil {
		return nil, err
	}
	dir := filepath.Join(e.dir, name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	text := fmt.Sprintf(`version = 3
root = %q
state = %q
disabled_plugins = ['io.containerd.cri.v1.images', 'io.containerd.cri.v1.runtime', 'io.containerd.grpc.v1.cri', 'io.containerd.nri.v1.nri']
[grpc]
address = %q
[ttrpc]
address = %q
`, dir+"/root", dir+"/state", dir+"/c.sock", dir+"/t.sock")
	config := filepath.Join(dir, "config.toml")
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return nil, err
	}
	c := &containerd{ctr: filepath.Join(e.containerd, "ctr"), socket: dir + "/c.sock", dir: dir, namespace: "cradle-bench-" + strconv.Itoa(os.Getpid())}
	cmd, err := apart("", filepath.Join(e.containerd, "containerd"), "-c", config)
	if err != nil {
		return nil, err
	}
	cmd.Env = ownEnv("TMPDIR="+dir, "PATH="+e.containerd+":"+os.Getenv("PATH")) // the runc shim is looked for there
	p, err := launch(ctx, cmd, dir+".log", func(string) bool { return c.do(ctx, "version") == nil })
	if err != nil {
		return nil, errors.Join(err, c.clean())
	}
	c.process = p
	return c, nil
}

// command runs ctr and returns its standard output.
func (c *containerd) command(ctx context.Context, words ...string) (string, error) {
	return output(ctx, ownEnv(), c.ctr, append([]string{"-a", c.socket, "-n", c.namespace}, words...)...)
}

// do is command for those who do not care what it printed.
func (c *containerd) do(ctx context.Context, words ...string) error {
	_, err := c.command(ctx, words...)
	return err
}

// run is `ctr run`, with runc's state below our directory as well.
func (c *containerd) run(ctx context.Context, words ...string) error {
	return c.do(ctx, append([]string{"run", "--runc-root", filepath.Join(c.dir, "runc")}, words...)...)
}

// fifos is where ctr keeps the pipes of a process; its default is shared by the machine.
func (c *containerd) fifos() string { return filepath.Join(c.dir, "fifo") }

// busybox imports the test image and returns its name.
func (c *containerd) busybox(ctx context.Context, e env) (string, error) {
	return "docker.io/library/busybox:latest", c.do(ctx, "images", "import", filepath.Join(e.images, "busybox.tar"))
}

// stop ends containerd; its containers have ended before.
func (c *containerd) stop() error { return errors.Join(c.process.stop(), c.clean()) }

func (c *containerd) clean() error {
	return errors.Join(endBelow(c.dir), removeCgroups(c.namespace), os.RemoveAll(c.dir))
}
