package qemu

// undo takes back, last first, what a call has made so far. It takes no context: taking back is not to be
// cancelled.
type undo []func()

func (u *undo) push(f func()) { *u = append(*u, f) }

func (u *undo) run() {
	for i := len(*u) - 1; i >= 0; i-- {
		(*u)[i]()
	}
	*u = nil
}
