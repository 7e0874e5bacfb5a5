package api

import (
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Split parts a request in two. What is in the first half does not depend on who the container is, nor on what it runs: a guest
// that has done it (MethodPrepare) can be given to any container with the same first half. The second half is the rest.
// A network is of the second; the first may be given one of its own. r is not changed; the halves share memory with it.
func (r CreateRequest) Split() (first, rest CreateRequest) {
	rest = r
	rest.Rootfs, rest.Volumes, rest.VolumeDisks = Rootfs{}, nil, nil
	first = CreateRequest{Rootfs: r.Rootfs, Volumes: r.Volumes, VolumeDisks: r.VolumeDisks}
	for _, f := range r.Files {
		f.Data = nil
		first.Files = append(first.Files, f)
	}
	spec := *r.Spec
	first.Spec = &specs.Spec{Root: spec.Root, Mounts: spec.Mounts, Linux: spec.Linux}
	spec.Root, spec.Mounts, spec.Linux = nil, nil, nil
	rest.Spec = &spec
	return first, rest
}

// Join is the inverse of Split: r is the second half and becomes the whole. It tells whether the halves fit: that the files
// of the second are those of the first.
func (r *CreateRequest) Join(first *CreateRequest) (ok bool) {
	if r.Spec == nil || !slices.EqualFunc(first.Files, r.Files, func(a, b File) bool { return a.Path == b.Path }) {
		return false
	}
	r.Rootfs, r.Volumes, r.VolumeDisks = first.Rootfs, first.Volumes, first.VolumeDisks
	r.Spec.Root, r.Spec.Mounts, r.Spec.Linux = first.Spec.Root, first.Spec.Mounts, first.Spec.Linux
	return true
}
