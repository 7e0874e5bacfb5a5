package node

import "log/slog"

// undoStack is what takes back, last first, what a change that failed midway has already done.
type undoStack struct {
	steps []undoStep
}

type undoStep struct {
	what string
	do   func() error
}

func (u *undoStack) push(what string, do func() error) {
	u.steps = append(u.steps, undoStep{what, do})
}

// forget keeps what was done: the change has succeeded.
func (u *undoStack) forget() { u.steps = nil }

// run undoes; a step that fails is logged and the rest go on.
func (u *undoStack) run(log *slog.Logger) {
	for i := len(u.steps) - 1; i >= 0; i-- {
		if err := u.steps[i].do(); err != nil {
			log.Error("undo", "what", u.steps[i].what, "err", err)
		}
	}
	u.steps = nil
}
