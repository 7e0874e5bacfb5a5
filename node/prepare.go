package node

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/cradlevm/cradle/api"
	"github.com/cradlevm/cradle/node/runspec"
	"github.com/cradlevm/cradle/pool"
	"github.com/cradlevm/cradle/vm"
)

// readyName is the directory, below the root, of the writable disks of prepared VMs.
const readyName = "ready"

func (n *Node) readyDir() string { return filepath.Join(n.options.Root, readyName) }

// scratchPath is where the container's writable disk is.
func (c *ctr) scratchPath() string { return filepath.Join(c.dir(), scratchName) }

// preparation describes how a VM is made ready for containers of such a plan. nil when none can be: the container has disks of
// its own already, or what it runs from may change.
func (c *ctr) preparation(p *plan) *pool.Preparation {
	n := c.node
	if _, err := os.Lstat(c.scratchPath()); p.rec.Dir != "" || len(p.request.VolumeDisks) > 0 || !errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	size, err := runspec.ScratchSize(&p.rec.HostConfig, n.settings)
	if err != nil {
		return nil
	}
	first, _ := p.request.Split()
	process := p.request.Spec.Process
	if first.Park = !p.request.Init && !process.Terminal && !process.NoNewPrivileges; first.Park && runspec.DefaultFilter(&p.rec.HostConfig) {
		first.Seccomp = p.request.Seccomp
	}
	var layers []vm.Disk
	for _, d := range p.config.VM.Disks {
		if d.ReadOnly {
			layers = append(layers, d)
		}
	}
	key, err := json.Marshal(struct {
		Layers  []vm.Disk
		Scratch int64
		Request api.CreateRequest
		Seccomp []byte // which is not in the JSON of a request
	}{layers, size, first, first.Seccomp})
	if err != nil {
		return nil
	}
	// What a container without a network must not have, and one with others has otherwise, can be taken back.
	ahead := n.interfacesAhead(p.rec.Links)
	network, err := json.Marshal(ahead)
	if err != nil {
		return nil
	}
	first.Network = &api.NetworkRequest{Interfaces: ahead}
	first.Read = programs(process.Args, process.Env)
	return &pool.Preparation{
		Key: digest(key, network), Base: digest(key), Name: p.rec.Config.Image, Layers: layers, Scratch: scratchSerial, Request: first,
		MakeScratch: func(ctx context.Context, path string) error { return n.scratch.New(ctx, path, size) }, CopyScratch: n.scratch.Copy,
	}
}

// programs are the paths at which the program of a process may be, in the order in which it is looked for.
func programs(args, env []string) []string {
	if len(args) == 0 || strings.Contains(args[0], "/") {
		return args[:min(1, len(args))]
	}
	var all []string
	for _, pair := range env {
		if list, ok := strings.CutPrefix(pair, "PATH="); ok {
			for dir := range strings.SplitSeq(list, ":") {
				all = append(all, path.Join("/", dir, args[0]))
			}
		}
	}
	return all[:min(len(all), maxPrograms)]
}

// maxPrograms is how many directories of a PATH are looked at ahead.
const maxPrograms = 16

// digest names some bytes.
func digest(parts ...[]byte) string {
	sum := sha256.Sum256(bytes.Join(parts, nil))
	return hex.EncodeToString(sum[:16])
}

// revisePool lets the pool see that images have been removed.
func (n *Node) revisePool() {
	if n.pool != nil {
		n.pool.Revise()
	}
}

// makeScratch makes the container's writable disk, unless it has one.
func (c *ctr) makeScratch(ctx context.Context, rec record) error {
	if _, err := os.Stat(c.scratchPath()); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	size, err := runspec.ScratchSize(&rec.HostConfig, c.node.settings)
	if err != nil {
		return err
	}
	return c.node.scratch.New(ctx, c.scratchPath(), size)
}
