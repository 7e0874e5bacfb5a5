package guest

import (
	"github.com/cradlevm/cradle/guest/launch"
)

// threadFor finds the thread to start a process from, and works out the process's capabilities. The container's own thread
// gives up what the container's first process may never have (its bounding set), so that each process need not do so. One
// that has another bounding set, a privileged exec, starts from a thread that is made for it, and leaves then.
func (c *container) threadFor(r *request) (*thread, *launch.Caps, error) {
	own, err := c.capabilities()
	if err != nil || r.process.Capabilities == c.req.Spec.Process.Capabilities {
		return c.thread, own, err
	}
	caps, err := capabilities(r.process.Capabilities)
	if err != nil || caps.Bounding == own.Bounding {
		return c.thread, caps, err
	}
	t, err := c.visitor()
	return t, caps, err
}

// capabilities are those of the container's first process.
func (c *container) capabilities() (*launch.Caps, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.caps == nil {
		caps, err := capabilities(c.req.Spec.Process.Capabilities)
		if err != nil {
			return nil, err
		}
		c.caps = caps
	}
	return c.caps, nil
}

// confine gives up, on the container's own thread, what is not in the bounding set, once. A first process that is parked has been
// started already.
func (c *container) confine(t *thread, r *request, bounding launch.CapSet) error {
	if t != c.thread || t.confined || r.first && c.parked != nil {
		return nil
	}
	if err := launch.Confine(bounding); err != nil {
		return err
	}
	t.confined = true
	return nil
}
