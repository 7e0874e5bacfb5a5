package pool

// Where many sandboxes are up, memory is what runs out first, and of a small one's 56 MiB 31 are translated code: that of
// what a container's start runs once and, mostly, never again. Those that are ready when they are taken are there for speed, and few.

// codeCache is the vm.Config.CodeCache of a sandbox that is restored on the spot: the less memory the host has left, the less.
func (p *Pool) codeCache() int64 {
	total, available, err := p.o.Host.Memory()
	switch {
	case err != nil, available >= total/4*3:
		return 0
	case available >= total/8*3:
		return 16 << 20
	}
	return 10 << 20
}
