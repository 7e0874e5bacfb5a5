// Package guestos finds or makes what a guest boots: a Linux kernel and an initrd with cradle-init as /init.
//
// Two kernels work. Ours is small, has no modules, and is built from Debian's linux-source with kernel/config
// (`make kernel`). The distribution's cloud kernel needs modules; they are put into the initrd.
package guestos

// Guest is a bootable pair.
type Guest struct {
	Kernel  string // path of a bzImage
	Initrd  string // path of an uncompressed cpio archive (newc)
	Release string // uname -r of the kernel
	Digest  string // hex sha256 over both files' contents: the key for everything derived from this guest
	// Erofs512 tells whether the kernel mounts erofs with 512-byte blocks (since 6.4).
	Erofs512 bool
}
