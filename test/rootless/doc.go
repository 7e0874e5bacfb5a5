// Package rootless runs cradle as an ordinary user with a home and nothing else: no root process, no capability, no
// cgroup of its own, no system directory to write to.
package rootless
