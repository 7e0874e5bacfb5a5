// Command filtercheck has the kernel that it runs on judge system calls by filters, and says where that is not what the filters say: which calls are
// allowed whatever their arguments, a kernel may remember (cradle's own learns it, hack/kernel-patches/seccomp-learn.patch). So each question is asked more
// than once, and the answers that may be remembered come before those that may not.
package main

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"sync"

	"golang.org/x/sys/unix"
)

func main() {
	runtime.LockOSThread() // filters are a thread's
	cases := map[string]func() error{
		"arguments": arguments, "chain": chain, "chain of arguments": chainOfArguments, "numbers": numbers, "architectures": architectures,
		"threads": threads, "children": children, "actions": actions, "at once": atOnce, "tracer": tracer, "traced": traced,
	}
	if len(os.Args) == 2 {
		if err := cases[os.Args[1]](); err != nil {
			fmt.Printf("%s: %v\n", os.Args[1], err)
			os.Exit(1)
		}
		return
	}
	failed := false
	for _, name := range slices.Sorted(maps.Keys(cases)) {
		if name == "traced" {
			continue
		}
		cmd := exec.Command("/proc/self/exe", name) // a filter is for ever
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		if err := cmd.Run(); err != nil {
			fmt.Printf("%s: %v\n", name, err)
			failed = true
		}
	}
	if failed {
		os.Exit(1)
	}
	fmt.Println("as the filters say")
}

const allow = unix.SECCOMP_RET_ALLOW

// expect makes a system call of this architecture three times.
func expect(what string, number uint32, first uintptr, want uint32) error {
	for i := range 3 {
		if got := call(number, first); got != want {
			return fmt.Errorf("%s, time %d: error %d, want %d", what, i+1, got, want)
		}
	}
	return nil
}

// arguments: what depends on an argument is asked about each time.
func arguments() error {
	err := install(0, program(allow, native(unix.SYS_GETPGID, 7, deny(77))))
	for range 3 {
		err = errors.Join(err, expect("another argument", unix.SYS_GETPGID, 0, 0), expect("the argument", unix.SYS_GETPGID, 7, 77),
			expect("another call", unix.SYS_GETPPID, 7, 0))
	}
	return err
}

// chain: a filter that comes later changes what has been learnt, one that allows does not.
func chain() error {
	return errors.Join(
		install(0, program(allow)), expect("allowed", unix.SYS_GETPPID, 0, 0),
		install(0, program(allow, native(unix.SYS_GETPPID, any, deny(70)))), expect("denied later", unix.SYS_GETPPID, 0, 70),
		install(0, program(allow)), expect("still denied", unix.SYS_GETPPID, 0, 70), expect("another", unix.SYS_GETUID, 0, 0),
		install(0, program(allow, native(unix.SYS_GETUID, any, deny(71)), native(unix.SYS_GETPPID, any, deny(72)))),
		expect("another denied", unix.SYS_GETUID, 0, 71), expect("denied twice, the newer filter's", unix.SYS_GETPPID, 0, 72))
}

// chainOfArguments: what an older filter asks about arguments is asked though the newer one always allows it.
func chainOfArguments() error {
	return errors.Join(
		install(0, program(allow, native(unix.SYS_GETPGID, 7, deny(77)))), expect("another argument", unix.SYS_GETPGID, 0, 0),
		install(0, program(allow)), expect("another argument, two filters", unix.SYS_GETPGID, 0, 0), expect("the argument", unix.SYS_GETPGID, 7, 77))
}

// numbers: those that no table has are asked about as well.
func numbers() error {
	const x32 = 0x40000000
	return errors.Join(
		install(0, program(allow, native(1000, any, deny(66)), native(x32|unix.SYS_GETPPID, any, deny(67)), native(1<<31, any, deny(68)),
			native(unix.SYS_GETPPID+512, any, deny(69)))),
		expect("the plain call", unix.SYS_GETPPID, 0, 0), expect("unknown", 1000, 0, 66), expect("x32", x32|unix.SYS_GETPPID, 0, 67),
		expect("negative", 1<<31, 0, 68), expect("beyond", unix.SYS_GETPPID+512, 0, 69), expect("unknown and allowed", 1001, 0, uint32(unix.ENOSYS)))
}

// architectures: one number is two calls.
func architectures() error {
	const pid32, ppid32, writev, semget = 20, 64, 20, 64
	err := install(0, program(allow, rule{unix.AUDIT_ARCH_I386, pid32, any, deny(68)}, native(semget, any, deny(69))))
	for range 3 {
		err = errors.Join(err, expect("20 of 64 bits", writev, ^uintptr(0), uint32(unix.EBADF)), expect("64 of 64 bits", semget, 0, 69))
		if got := int80(pid32); got != -68 {
			err = errors.Join(err, fmt.Errorf("20 of 32 bits: %d", got))
		}
		if got := int80(ppid32); got < 0 {
			err = errors.Join(err, fmt.Errorf("64 of 32 bits: %d", got))
		}
	}
	return err
}

// threads: a filter for all of them counts in those that have learnt from another.
func threads() error {
	turn, done := make(chan struct{}), make(chan error)
	err := install(unix.SECCOMP_FILTER_FLAG_TSYNC, program(allow))
	for range 4 {
		go func() {
			runtime.LockOSThread()
			err := expect("allowed", unix.SYS_GETPPID, 0, 0)
			done <- err
			<-turn
			done <- errors.Join(expect("denied", unix.SYS_GETPPID, 0, 72), expect("another", unix.SYS_GETUID, 0, 0))
		}()
	}
	for range 4 {
		err = errors.Join(err, <-done)
	}
	err = errors.Join(err, install(unix.SECCOMP_FILTER_FLAG_TSYNC, program(allow, native(unix.SYS_GETPPID, any, deny(72)))))
	close(turn)
	for range 4 {
		err = errors.Join(err, <-done)
	}
	return err
}

// children: they have what is learnt, and what they install is theirs.
func children() error {
	if os.Getenv("CHILD") != "" {
		return errors.Join(expect("in the child", unix.SYS_GETPGID, 7, 77), expect("in the child", unix.SYS_GETUID, 0, 0),
			install(0, program(allow, native(unix.SYS_GETUID, any, deny(73)))), expect("its own", unix.SYS_GETUID, 0, 73))
	}
	err := errors.Join(install(unix.SECCOMP_FILTER_FLAG_TSYNC, program(allow, native(unix.SYS_GETPGID, 7, deny(77)))),
		expect("learnt", unix.SYS_GETUID, 0, 0))
	for range 3 {
		cmd := exec.Command("/proc/self/exe", "children")
		cmd.Env = append(os.Environ(), "CHILD=1")
		cmd.Stdout = os.Stdout
		err = errors.Join(err, cmd.Run(), expect("still allowed", unix.SYS_GETUID, 0, 0), expect("still denied", unix.SYS_GETPGID, 7, 77))
	}
	return err
}

// actions: none but allowing, and nothing else in it, is remembered as that.
func actions() error {
	return errors.Join(
		install(0, program(allow, native(unix.SYS_GETPPID, any, unix.SECCOMP_RET_TRACE|1), native(unix.SYS_GETUID, any, unix.SECCOMP_RET_LOG),
			native(unix.SYS_GETGID, any, allow|5), native(unix.SYS_GETEUID, any, unix.SECCOMP_RET_USER_NOTIF))),
		expect("nobody traces", unix.SYS_GETPPID, 0, uint32(unix.ENOSYS)), expect("logged", unix.SYS_GETUID, 0, 0),
		expect("allowed with data", unix.SYS_GETGID, 0, 0), expect("nobody is notified", unix.SYS_GETEUID, 0, uint32(unix.ENOSYS)),
		install(0, program(allow, native(unix.SYS_GETGID, any, deny(74)))), expect("denied later", unix.SYS_GETGID, 0, 74))
}

// atOnce: many threads learn at the same time.
func atOnce() error {
	err := install(unix.SECCOMP_FILTER_FLAG_TSYNC, program(allow, native(unix.SYS_GETPGID, 7, deny(77)), native(unix.SYS_GETPPID, any, deny(75))))
	errs := make([]error, 8)
	var all sync.WaitGroup
	for i := range errs {
		all.Go(func() {
			runtime.LockOSThread()
			for range 2000 {
				errs[i] = errors.Join(expect("another argument", unix.SYS_GETPGID, 0, 0), expect("denied", unix.SYS_GETPPID, 0, 75),
					expect("the argument", unix.SYS_GETPGID, 7, 77), expect("allowed", unix.SYS_GETUID, 0, 0))
				if errs[i] != nil {
					return
				}
			}
		})
	}
	all.Wait()
	return errors.Join(append(errs, err)...)
}
