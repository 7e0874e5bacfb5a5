package sandboxtest

import (
	"context"
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"time"

	"github.com/cradlevm/cradle/api"
	"github.com/cradlevm/cradle/vm"
)

// image is what a checkpoint holds: machines of goroutines cannot be copied, so in a restored one the programs begin
// anew, with the Memory that the processes had and after the output they had printed.
type image struct {
	Disks      []vm.Disk
	Containers []imageContainer
}

type imageContainer struct {
	ID      string
	Request api.CreateRequest
	Frozen  bool
	Running bool
	Memory  string
	Out     []byte
	Acked   uint64
}

// FailCheckpoint makes every Checkpoint fail after its still; nil ends that.
func (d *Driver) FailCheckpoint(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.uncheckpointed = err
}

// FailWrite makes writing saved state fail; nil ends that.
func (d *Driver) FailWrite(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.unwritten = err
}

// Checkpoint implements vm.Checkpointer.
func (m *Machine) Checkpoint(ctx context.Context, soon, still func(context.Context) error) (vm.Saved, time.Duration, error) {
	if soon != nil && !m.Paused() {
		if err := soon(ctx); err != nil {
			return nil, 0, err
		}
	}
	m.mu.Lock()
	if m.ended {
		m.mu.Unlock()
		return nil, 0, vm.ErrExited
	}
	held := m.paused == nil
	if held {
		m.paused = make(chan struct{})
	}
	i := m.image()
	m.mu.Unlock()
	begun := time.Now()
	err := still(ctx)
	if held {
		m.Resume(ctx)
	}
	m.driver.mu.Lock()
	if err == nil {
		err = m.driver.uncheckpointed
	}
	m.driver.mu.Unlock()
	if err != nil {
		return nil, 0, err
	}
	b, err := json.Marshal(i)
	if err != nil {
		return nil, 0, err
	}
	return &saved{driver: m.driver, text: b}, max(1, time.Since(begun)), nil
}

// image is what the machine has now. m.mu is held.
func (m *Machine) image() image {
	i := image{Disks: m.Config.Disks}
	for id, c := range m.containers {
		one := imageContainer{ID: id, Request: c.request, Frozen: c.frozen}
		if p := c.processes[""]; p != nil {
			p.mu.Lock()
			one.Running, one.Memory, one.Out, one.Acked = !p.over, p.memory, append([]byte(nil), p.out...), p.acked
			p.mu.Unlock()
		}
		i.Containers = append(i.Containers, one)
	}
	return i
}

// Write puts the state on disk.
func (s *saved) Write(_ context.Context, dir string) error {
	s.driver.mu.Lock()
	err := s.driver.unwritten
	s.driver.mu.Unlock()
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, savedName), s.text, 0o600)
}

// revive makes the containers that an image has.
func (m *Machine) revive(i image) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, one := range i.Containers {
		c := &guestContainer{id: one.ID, request: one.Request, frozen: one.Frozen, processes: map[string]*Process{}}
		m.containers[one.ID] = c
		if one.Out == nil && !one.Running {
			continue
		}
		p := newProcess(one.Request.Spec.Process.Args)
		p.memory, p.out, p.acked, p.Restored = one.Memory, one.Out, one.Acked, true
		c.processes[""] = p
		begin := func() { go m.run(c, "", p, m.driver.Programs[p.Args[0]]) }
		switch {
		case !one.Running:
			p.exit(0)
		case one.Frozen:
			c.thaw = begin
		default:
			begin()
		}
	}
}

// identify takes another identity as the agent does.
func (m *Machine) identify(r api.IdentifyRequest) (any, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := m.containers[r.ID]
	if c == nil {
		return nil, api.Errorf(api.CodeNotFound, "no container %s", r.ID)
	}
	if !c.frozen {
		return nil, api.Errorf(api.CodeInternal, "the container was told who it is while it ran")
	}
	first := c.processes[""]
	if first == nil || first.hasExited() {
		return nil, api.Errorf(api.CodeFailedPrecondition, "the container's first process has ended")
	}
	maps.DeleteFunc(c.processes, func(exec string, p *Process) bool {
		if exec != "" {
			p.exit(137)
		}
		return exec != ""
	})
	if r.NewID != "" {
		delete(m.containers, r.ID)
		c.id = r.NewID
		m.containers[r.NewID] = c
	}
	m.identified = append(m.identified, r)
	first.mu.Lock()
	defer first.mu.Unlock()
	return api.IdentifyResult{OutputEnd: uint64(len(first.out))}, nil
}

// Identified are the identities that the machine's containers were given after its restore.
func (m *Machine) Identified() []api.IdentifyRequest {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]api.IdentifyRequest(nil), m.identified...)
}

// Frozen reports whether a container stands still.
func (m *Machine) Frozen(id string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.containers[id] != nil && m.containers[id].frozen
}

// Remember sets what a process has in its memory, which a checkpoint takes along.
func (p *Process) Remember(text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.memory = text
}

// Memory is what Remember has set.
func (p *Process) Memory() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.memory
}

var _ vm.Checkpointer = (*Machine)(nil)
