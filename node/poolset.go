package node

import "github.com/cradlevm/cradle/pool"

// PoolSet is a request to the pool, and whether it is to forget those before.
type PoolSet struct {
	pool.Change
	// Default forgets what was set before: what the daemon was started with is in force again. What else is set comes after.
	Default bool `json:"default,omitempty"`
}

// poolSettings are those that the pool begins with: what the daemon was started with, and over it what has been set since.
func (n *Node) poolSettings() pool.Settings {
	kept, err := n.store.poolChange()
	s := n.options.PoolSettings.With(kept)
	if err == nil {
		err = s.Check()
	}
	if err != nil {
		n.options.Log.Error("read the pool's settings; those of the command line are in force", "err", err)
		return n.options.PoolSettings
	}
	if kept != (pool.Change{}) {
		n.options.Log.Info("the pool's settings are as `pool set` has left them; `pool set --default` forgets that",
			"min", s.Min, "max", s.Max, "memory", s.Memory)
	}
	return s
}

// PoolChange changes the pool while it runs. What it sets holds under later daemons, too. Errors: conflict when there is none;
// ErrInvalidArgument; those of the disk. Nothing has changed then.
func (n *Node) PoolChange(c PoolSet) error {
	if n.pool == nil {
		return conflict("the pool is off: this daemon was started with --pool off, or cannot restore virtual machines")
	}
	n.setting.Lock()
	defer n.setting.Unlock()
	settings, kept := n.options.PoolSettings, pool.Change{}
	if !c.Default {
		settings = n.pool.Settings()
		var err error
		if kept, err = n.store.poolChange(); err != nil {
			return err
		}
	}
	settings = settings.With(c.Change)
	if err := settings.Check(); err != nil {
		return invalid("%s", err)
	}
	if c.Min != nil || c.Max != nil { // the one may have taken the other with it
		kept.Min, kept.Max = &settings.Min, &settings.Max
	}
	if c.Memory != nil {
		kept.Memory = &settings.Memory
	}
	if c.Default || c.Min != nil || c.Max != nil || c.Memory != nil {
		if err := n.store.putPoolChange(kept); err != nil {
			return err
		}
	}
	return n.pool.Apply(pool.Change{
		Min: &settings.Min, Max: &settings.Max, Memory: &settings.Memory, Drain: c.Drain, Refill: c.Refill,
	})
}
