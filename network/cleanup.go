package network

import "log/slog"

// cleanup is what undoes the steps that were made, the last first.
type cleanup []func() error

func (c *cleanup) add(f func() error) { *c = append(*c, f) }

func (c *cleanup) run(log *slog.Logger) {
	for i := len(*c) - 1; i >= 0; i-- {
		if err := (*c)[i](); err != nil {
			log.Warn("undoing a step of a network failed", "error", err)
		}
	}
}
