// Package vmtest is the conformance suite that every vm.Driver passes.
package vmtest
type Guest struct{ Kernel, Initrd string }
