package qemu

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"sync"

	"github.com/cradlevm/cradle/vm"
)

// migration follows QEMU's migrations, out or in, of which there is one at a time.
type migration struct {
	mu     sync.Mutex
	status string        // QEMU's last word
	passes int           // how often memory has been gone through
	change chan struct{} // closed at the next change of the above
}

// begin forgets the last migration, before the next begins.
func (g *migration) begin() { g.became("", 0) }

// became takes QEMU's word for how far it is; an empty status is as before.
func (g *migration) became(status string, passes int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.status, g.passes = status, passes
	if g.change != nil {
		close(g.change)
	}
	g.change = make(chan struct{})
}

// event takes an event of QEMU's that concerns migrations.
func (g *migration) event(e event) {
	var data struct {
		Status string `json:"status"`
		Pass   int    `json:"pass"`
	}
	if json.Unmarshal(e.Data, &data) != nil {
		return
	}
	status, passes, _ := g.now()
	if e.Name == "MIGRATION_PASS" {
		passes = data.Pass
	} else {
		status = data.Status
	}
	g.became(status, passes)
}

// now tells how far it is, and when that changes.
func (g *migration) now() (status string, passes int, change <-chan struct{}) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.change == nil {
		g.change = make(chan struct{})
	}
	return g.status, g.passes, g.change
}

// over reports whether a status is one that a migration ends with.
func over(status string) bool {
	return status == "completed" || status == "failed" || status == "cancelled"
}

// setCapabilities sets whether memory that is shared is left out of the stream, and asks for events.
func (m *machine) setCapabilities(ctx context.Context, ignoreShared bool) error {
	type capability struct {
		Capability string `json:"capability"`
		State      bool   `json:"state"`
	}
	return m.mon.run(ctx, "migrate-set-capabilities", map[string]any{
		"capabilities": []capability{{"x-ignore-shared", ignoreShared}, {"events", true}}})
}

// migrate begins a migration out to f, or in from it. QEMU has f from here on.
func (m *machine) migrate(ctx context.Context, command string, f *os.File) error {
	const name = "migration"
	m.migration.begin()
	if _, err := m.mon.call(ctx, "getfd", map[string]any{"fdname": name}, int(f.Fd())); err != nil {
		return err
	}
	return m.mon.run(ctx, command, map[string]any{"uri": "fd:" + name})
}

// await waits for the migration's end. pass, when not nil, is called each time that memory has been gone through. The error is QEMU's
// reason when it can still be asked.
func (m *machine) await(ctx context.Context, pass func(passes int) error) error {
	known := 0
	for {
		status, passes, change := m.migration.now()
		switch {
		case status == "completed":
			return nil
		case over(status):
			return m.whyFailed(ctx, status)
		case passes != known && pass != nil:
			known = passes
			if err := pass(passes); err != nil {
				return err
			}
			continue
		}
		select {
		case <-change:
		case <-m.mon.done:
			return vm.ErrExited
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (m *machine) whyFailed(ctx context.Context, status string) error {
	value, err := m.mon.call(ctx, "query-migrate", nil)
	var info struct {
		Reason string `json:"error-desc"`
	}
	if err == nil {
		err = json.Unmarshal(value, &info)
	}
	if err != nil {
		return err
	}
	return fmt.Errorf("QEMU says %s: %s", status, info.Reason)
}
