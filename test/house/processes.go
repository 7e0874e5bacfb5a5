package house

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Process is one that Processes has found.
type Process struct {
	PID     int
	Command string // its words, joined by spaces
	Status  string // /proc/PID/status
}

// String is what a test's message says of it.
func (p Process) String() string { return "/proc/" + strconv.Itoa(p.PID) + ": " + p.Command }

// Processes are those, but for the caller, that belong to what lies below a directory: their command lines, working
// directories or open files lead there.
func Processes(dir string) []Process {
	return processes(func(p Process, proc string) bool {
		cwd, _ := os.Readlink(proc + "/cwd")
		if strings.Contains(p.Command, dir+"/") || strings.HasPrefix(cwd+"/", dir+"/") {
			return true
		}
		fds, _ := filepath.Glob(proc + "/fd/*")
		for _, fd := range fds {
			if to, _ := os.Readlink(fd); strings.HasPrefix(to, dir+"/") {
				return true
			}
		}
		return false
	})
}

// ProcessesWhere are those, but for the caller, of which ours is true; environ is the process's environment, its
// variables joined by zero bytes, and cwd its working directory.
func ProcessesWhere(ours func(p Process, environ, cwd string) bool) []Process {
	return processes(func(p Process, proc string) bool {
		environ, _ := os.ReadFile(proc + "/environ")
		cwd, _ := os.Readlink(proc + "/cwd")
		return ours(p, string(environ), cwd)
	})
}

func processes(ours func(p Process, proc string) bool) []Process {
	var found []Process
	procs, _ := filepath.Glob("/proc/[0-9]*")
	for _, proc := range procs {
		pid, err := strconv.Atoi(filepath.Base(proc))
		if err != nil || pid == os.Getpid() {
			continue
		}
		cmdline, _ := os.ReadFile(proc + "/cmdline")
		status, err := os.ReadFile(proc + "/status")
		if err != nil { // it has gone
			continue
		}
		p := Process{PID: pid, Command: strings.ReplaceAll(string(cmdline), "\x00", " "), Status: string(status)}
		if ours(p, proc) {
			found = append(found, p)
		}
	}
	return found
}
