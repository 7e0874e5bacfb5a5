// Package sandbox owns one microVM and the containers in it.
//
// # States of a sandbox
//
//	Start ──► ready ──► stopping ──► gone
//	  │         └──────────────────────▲   the monitor died, or Kill
//	  └─ error: nothing is left
//
// ready: the agent has answered and was configured. stopping: Stop asked the agent to sync and power off. gone: the
// monitor's process has ended and its directory, disks and user id are given back; every call answers ErrGone.
// A daemon that restarts finds ready sandboxes again with Attach.
//
// # States of a container in it
//
//	Create ──► created ──► running ──► stopped ──► (Delete)
//
// as package api defines them; when the sandbox goes, running containers end with status 137.
package sandbox
