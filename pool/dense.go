package pool

import "os"

// Where many sandboxes are up, memory is what runs out first, and of a small one's 56 MiB 31 are translated code: that of
// what a container's start runs once and, mostly, never again. Those that are ready when they are taken are there for speed, and few.

// codeCache is the vm.Config.CodeCache of a sandbox that is restored on the spot: the less, the more of the host's memory
// sandboxes have, or the less of it is left.
func (p *Pool) codeCache() int64 {
	total, available, err := p.o.Host.Memory()
	if err != nil {
		return 0
	}
	alive, err := os.ReadDir(p.o.Run)
	if err != nil {
		return 0
	}
	taken := int64(len(alive)) * believedCost
	switch {
	case taken > total/2, available < total/8:
		return 10 << 20
	case taken > total/4, available < total/4:
		return 16 << 20
	}
	return 0
}
