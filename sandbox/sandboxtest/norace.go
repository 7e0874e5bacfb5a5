//go:build !race

package sandboxtest

// Alone does something under the race detector only.
func Alone() {}
