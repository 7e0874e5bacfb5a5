package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/cradlevm/cradle/api"
	"github.com/cradlevm/cradle/node/runspec"
	"github.com/cradlevm/cradle/pool"
	"github.com/cradlevm/cradle/sandbox"
	"github.com/cradlevm/cradle/vm"
	"github.com/moby/moby/api/types/container"
)

// bringUp makes the container's VM: one of the pool's where that has one, else a freshly booted one. Of p's request, what
// is left to do is left. What undoes it is pushed.
func (c *ctr) bringUp(ctx context.Context, p *plan, steps *phases, undo *undoStack) (*sandbox.Sandbox, error) {
	n := c.node
	if n.pool != nil && p.guest.Digest == n.options.Guest.Digest {
		size := pool.Class{CPUs: p.config.VM.CPUs, Memory: p.config.VM.Memory}
		if r := n.pool.Take(ctx, size, c.preparation(p)); r != nil {
			steps.done(wayFrom(r))
			err := c.adopt(ctx, p, r, undo)
			if err == nil {
				steps.done("plug")
				return r.Sandbox, nil
			}
			n.options.Log.Warn("a virtual machine of the pool failed; booting one", "container", c.id, "err", err)
		}
	}
	if err := c.makeScratch(ctx, p.rec); err != nil {
		return nil, err
	}
	machine, err := c.boot(ctx, p.config, undo)
	if err != nil {
		return nil, fmt.Errorf("guest %s: %w", p.guest.Release, err)
	}
	steps.done(wayBoot)
	return machine, nil
}

// recordMachine stores that the container has, or is about to have, this VM.
func (c *ctr) recordMachine(config sandbox.Config) error {
	return c.change(func(r *record) { r.Sandbox, r.Booting = &config, true })
}

// adoptMachine is recordMachine of a VM that the pool had ready. Until a record says whose it is it is nobody's, and a daemon that
// starts ends it: it does not have to be written down before the container runs. It is where that costs next to nothing, since
// one that is to be removed at its end is then removed by the next daemon, although it never ran.
func (c *ctr) adoptMachine(config sandbox.Config) error {
	c.mu.Lock()
	lasting := !c.rec.fleets()
	if lasting {
		c.rec.Sandbox, c.rec.Booting = &config, true
	}
	c.mu.Unlock()
	if lasting {
		return nil
	}
	return c.recordMachine(config)
}

// unrecordMachine takes recordMachine back.
func (c *ctr) unrecordMachine() error {
	return c.change(func(r *record) { r.Sandbox, r.Booting = nil, false })
}

// adopt makes a VM of the pool the container's, and gives it the container's disks. Nothing of it is left on error, and p is
// as it was.
func (c *ctr) adopt(ctx context.Context, p *plan, r *pool.Ready, undo *undoStack) error {
	mine := r.Config
	mine.Hostname, mine.VM.Disks = p.config.Hostname, p.config.VM.Disks
	var steps undoStack
	steps.push("record", c.unrecordMachine)
	steps.push("virtual machine's things", func() error { return c.node.freeMachine(mine.VM) })
	steps.push("virtual machine", r.Sandbox.Kill)
	err := c.adoptMachine(mine)
	if err == nil {
		err = c.giveDisks(ctx, p, r)
	}
	if err != nil {
		steps.run(c.node.options.Log.With("container", c.id))
		return err
	}
	undo.steps = append(undo.steps, steps.steps...)
	if r.Prepared != nil {
		_, p.request = p.request.Split()
		p.request.Prepared = r.PreparedAs
		p.request.Network = &api.NetworkRequest{} // none but what join says, whatever it was prepared for
	}
	p.request.Configure = &api.ConfigureRequest{Hostname: mine.Hostname, UnixNanos: time.Now().UnixNano()}
	return nil
}

// giveDisks plugs the container's disks into a VM, or makes those of one that has some the container's.
func (c *ctr) giveDisks(ctx context.Context, p *plan, r *pool.Ready) error {
	if r.Prepared == nil {
		if err := c.makeScratch(ctx, p.rec); err != nil {
			return err
		}
		return r.Sandbox.Plug(ctx, p.config.VM.Disks...)
	}
	if err := os.Rename(r.Scratch, c.scratchPath()); err != nil {
		return errors.Join(err, os.Remove(r.Scratch))
	}
	return nil
}

// boot starts a VM of the container's own.
func (c *ctr) boot(ctx context.Context, config sandbox.Config, undo *undoStack) (*sandbox.Sandbox, error) {
	config, err := c.claim(config, undo)
	if err != nil {
		return nil, err
	}
	machine, err := sandbox.Start(ctx, c.node.options.Driver, config)
	if err != nil {
		return nil, err
	}
	undo.push("virtual machine", machine.Kill)
	if n := machine.Boots(); n > 1 {
		c.node.options.Log.Warn("the guest came up without a timer, the host being busy, and was booted again", "container", c.id, "boots", n)
	}
	return machine, nil
}

// claim completes the description of a VM of the container's own: who it is, as whom and where it runs. It records that
// there is one from now on. The VM's user is its own unless config says whose it shares.
func (c *ctr) claim(config sandbox.Config, undo *undoStack) (sandbox.Config, error) {
	n := c.node
	uid := config.VM.UID
	if uid == 0 {
		uid = n.takeUID()
	} else {
		n.shareUID(uid)
	}
	config.Token = sandbox.NewToken()
	config.VM.ID, config.VM.Dir = c.id, filepath.Join(n.options.Run, "s", c.id[:12])
	config.VM.UID, config.VM.GID = uid, uid
	undo.push("virtual machine's things", func() error { return n.freeMachine(config.VM) })
	nics, err := n.newNICs(len(config.VM.NICs))
	if err != nil {
		return config, err
	}
	config.VM.NICs = nics
	undo.push("record", c.unrecordMachine)
	if err := c.recordMachine(config); err != nil {
		return config, err
	}
	if err := os.MkdirAll(config.VM.Dir, 0o700); err != nil {
		return config, fmt.Errorf("make runtime directory: %w", err)
	}
	return config, nil
}

// freeMachine gives back what a VM that has gone had on the host.
func (n *Node) freeMachine(c vm.Config) error {
	err := errors.Join(os.RemoveAll(c.Dir), n.dropNICs(c.NICs))
	n.giveUID(c.UID)
	return err
}

// openPool opens the pool. Without it everything works, only slower: what keeps it from opening is logged.
func (n *Node) openPool(ctx context.Context) {
	if !n.options.Pool {
		return
	}
	warm, err := n.warm()
	if err == nil {
		n.pool, err = pool.Open(ctx, pool.Options{
			Dir: filepath.Join(n.options.Root, "templates"), Run: filepath.Join(n.options.Run, "s"), Scratch: n.readyDir(),
			Driver: n.options.Driver, Guest: n.options.Guest, Warm: warm,
			Settings: n.poolSettings(), Usual: n.usualSize(), Keep: n.options.PoolKeep,
			TakeUID: n.takeUID, GiveUID: n.giveUID, NICs: nicSlots, MakeNICs: n.newNICs, DropNICs: n.dropNICs, Log: n.options.Log,
		})
	}
	if err != nil {
		n.options.Log.Warn("every container boots its virtual machine", "reason", err)
	}
}

// warm describes what a ready VM has done before: a container with docker's defaults.
func (n *Node) warm() (pool.Warm, error) {
	config := &container.Config{Hostname: "warm", Cmd: []string{"true"}, AttachStdout: true, AttachStderr: true}
	prepared, _, err := runspec.Prepare(newID(), config, &container.HostConfig{}, n.settings)
	if err != nil {
		return pool.Warm{}, err
	}
	request, err := runspec.Create(prepared, n.settings)
	if err != nil {
		return pool.Warm{}, err
	}
	return pool.Warm{Request: request, Networks: usualNetworks(), Scratch: func(ctx context.Context, path string) error {
		size, err := runspec.ScratchSize(&container.HostConfig{}, n.settings)
		if err != nil {
			return err
		}
		return n.scratch.New(ctx, path, size)
	}}, nil
}

// usualSize is the machine of a container without limits.
func (n *Node) usualSize() pool.Class {
	cpus, memory := runspec.VMSize(&container.HostConfig{}, n.settings)
	return pool.Class{CPUs: cpus, Memory: memory}
}

// PoolStatus tells what the pool has ready.
func (n *Node) PoolStatus() pool.Status {
	if n.pool == nil {
		return pool.Status{Off: true, Classes: []pool.ClassStatus{}}
	}
	return n.pool.Status()
}
