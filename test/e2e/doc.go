// Package e2e tests cradle as its users have it: the programs, a daemon, real virtual machines, and docker's own
// command line beside ours against the same socket.
package e2e
