package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/docker/cli/cli"
	"github.com/docker/cli/cli/command"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/cradlevm/cradle/network"
)

// newResetCommand is `system reset`: everything stopped and removed, as if cradle had never run.
func newResetCommand(docker command.Cli, d *daemonDialer) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:         "reset [OPTIONS]",
		Short:       "Stop all containers and remove them, all images and all state",
		Args:        cli.NoArgs,
		Annotations: map[string]string{annotationNoDaemon: "true"},
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := newReset(d, os.Getenv, os.Geteuid())
			if err != nil {
				return err
			}
			if !force {
				question := "WARNING! This stops and removes all containers, all images and all state of cradle in\n  - " +
					r.root + "\n  - " + r.run + "\n\nAre you sure you want to continue?"
				if err := confirm(cmd.Context(), docker, question, "system reset has been cancelled"); err != nil {
					return err
				}
			}
			return r.do(cmd.Context())
		},
		DisableFlagsInUseLine: true,
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "Do not prompt for confirmation")
	return cmd
}

// reset is one installation, to be emptied.
type reset struct {
	daemon    *daemonDialer
	root, run string
}

func newReset(d *daemonDialer, getenv env, uid int) (*reset, error) {
	if d.run == "" {
		return nil, errors.New("system reset works on the default daemon only: unset CRADLE_HOST; CRADLE_ROOT and CRADLE_RUN choose the installation")
	}
	root, err := rootDir(getenv, uid)
	if err != nil {
		return nil, err
	}
	r := &reset{daemon: d, root: root, run: d.run}
	// Nothing is removed from a directory that no daemon has made its own.
	for dir, marker := range map[string]string{r.root: rootLockName, r.run: startLockName} {
		if _, err := os.Lstat(filepath.Join(dir, marker)); err == nil || !isDir(dir) {
			continue
		}
		if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 && !onlySocket(entries) {
			return nil, errors.Join(fmt.Errorf("%s is not a directory of cradle's: it has no file %s", dir, marker), err)
		}
	}
	return r, nil
}

func onlySocket(entries []os.DirEntry) bool {
	return len(entries) == 1 && entries[0].Name() == socketName
}

// do asks the daemon to stop and forget everything, and removes what is left. A daemon that cannot even start
// is no obstacle: its virtual machines are then ended from here.
func (r *reset) do(ctx context.Context) error {
	alone := false
	if isDir(r.root) || isDir(r.run) {
		if err := r.askDaemon(ctx); err != nil {
			alone = true
			fmt.Fprintf(os.Stderr, "cradle: resetting without the daemon: %s\n", inOurWords(err.Error()))
		}
	}
	if isDir(r.root) {
		wait, cancel := context.WithTimeout(ctx, startLimit)
		defer cancel()
		lock, err := waitLock(wait, filepath.Join(r.root, rootLockName))
		if err != nil {
			return fmt.Errorf("the daemon has not ended: %w", err)
		}
		defer lock.Close()
	}
	if err := killMonitors(r.root, r.run); err != nil {
		return err
	}
	var errs []error
	if alone {
		errs = append(errs, removeNetworks(ctx, filepath.Join(r.root, "networks")))
	}
	return errors.Join(append(errs, empty(r.root), empty(r.run))...)
}

// removeNetworks removes from the host what the networks of a state directory have there, whose machines have ended. What is
// theirs is known by the directory's name: the state itself goes first, since it may be why the daemon does not start.
func removeNetworks(ctx context.Context, dir string) error {
	if os.Geteuid() != 0 || !isDir(dir) { // who could not have made any
		return nil
	}
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	networks, err := network.Open(ctx, network.Options{Dir: dir})
	if err != nil {
		return fmt.Errorf("remove networks: %w", err)
	}
	return errors.Join(networks.Reset(ctx), networks.Close())
}

func (r *reset) askDaemon(ctx context.Context) error {
	if err := r.daemon.ensure(ctx); err != nil {
		return err
	}
	resp, err := r.daemon.call(ctx, http.MethodPost, "reset", nil)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// empty removes dir. When dir itself may not be removed (it is a mount point, or its parent is not ours), its
// content is.
func empty(dir string) error {
	err := os.RemoveAll(dir)
	if err == nil {
		return nil
	}
	entries, readErr := os.ReadDir(dir)
	if readErr == nil && len(entries) == 0 {
		return nil
	}
	return err
}

// killMonitors ends the virtual machine monitors that run out of dirs: they outlive their daemon, and a reset
// without one has only the process table to go by.
func killMonitors(dirs ...string) error {
	procs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return err
	}
	for _, proc := range procs {
		pid, err := strconv.Atoi(filepath.Base(proc))
		if err != nil || !isMonitorOf(proc, dirs) {
			continue
		}
		if err := killMonitor(pid, proc, dirs); err != nil {
			return fmt.Errorf("ending virtual machine monitor %d: %w", pid, err)
		}
	}
	return nil
}

// killMonitor kills the process and waits for its end. A pidfd stands for the process that was looked at, and
// not for another one that got its number since.
func killMonitor(pid int, proc string, dirs []string) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if !isMonitorOf(proc, dirs) {
		return nil
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(closePatience.Milliseconds()))
		switch {
		case err == unix.EINTR:
			continue
		case err == nil && n == 0:
			return errors.New("it was killed and does not end")
		}
		return err
	}
}

// isMonitorOf tells whether the process is a monitor whose command line or working directory lies in one of dirs.
func isMonitorOf(proc string, dirs []string) bool {
	exe, err := os.Readlink(filepath.Join(proc, "exe"))
	if err != nil {
		return false
	}
	name := filepath.Base(exe)
	if !strings.HasPrefix(name, "qemu-system-") && !strings.HasPrefix(name, "cloud-hypervisor") && !strings.HasPrefix(name, "firecracker") {
		return false
	}
	cmdline, _ := os.ReadFile(filepath.Join(proc, "cmdline"))
	cwd, _ := os.Readlink(filepath.Join(proc, "cwd"))
	for _, dir := range dirs {
		if strings.Contains(string(cmdline), dir+"/") || strings.HasPrefix(cwd+"/", dir+"/") {
			return true
		}
	}
	return false
}
