package seccomp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

const childEnv = "CRADLE_SECCOMP_TEST_CAPS"

// TestMain turns this binary into the confined child when it was started as one.
func TestMain(m *testing.M) {
	if caps, ok := os.LookupEnv(childEnv); ok {
		child(strings.Fields(caps))
	}
	os.Exit(m.Run())
}

// child installs docker's default profile on all of its threads and tries things; it prints what failed to be so.
func child(caps []string) {
	runtime.LockOSThread()
	prog, err := Compile(Default(caps, runtime.GOARCH), runtime.GOARCH)
	if err == nil {
		err = install(prog)
	}
	if err != nil {
		fmt.Println("install:", err)
		os.Exit(1)
	}
	admin := len(caps) > 0
	expect := func(what string, got, want error) {
		if !errors.Is(got, want) && !(got == nil && want == nil) {
			fmt.Printf("%s: %v, want %v\n", what, got, want)
		}
	}
	call := func(n, a, b, c uintptr) error {
		if _, _, e := unix.Syscall(n, a, b, c); e != 0 {
			return e
		}
		return nil
	}
	if !admin {
		expect("mount", unix.Mount("none", "/proc", "tmpfs", 0, ""), unix.EPERM)
		expect("unshare user", unix.Unshare(unix.CLONE_NEWUSER), unix.EPERM)
		expect("clone user", call(unix.SYS_CLONE, unix.CLONE_NEWUSER, 0, 0), unix.EPERM)
		expect("clone3", call(unix.SYS_CLONE3, 0, 0, 0), unix.ENOSYS)
		expect("setns", unix.Setns(-1, 0), unix.EPERM)
	} else {
		// Through the filter, and refused by the kernel for another reason.
		expect("setns", unix.Setns(-1, 0), unix.EBADF)
		expect("clone3", call(unix.SYS_CLONE3, 0, 0, 0), unix.EINVAL)
	}
	expect("odd personality", call(unix.SYS_PERSONALITY, 0x1234, 0, 0), unix.EPERM)
	expect("personality high half", call(unix.SYS_PERSONALITY, 1<<32, 0, 0), unix.EPERM)
	expect("personality query", call(unix.SYS_PERSONALITY, 0xffffffff, 0, 0), nil)
	expect("keyctl", call(unix.SYS_KEYCTL, 0, 0, 0), unix.EPERM)
	expect("a call of the future", call(5000, 0, 0, 0), unix.ENOSYS)
	_, err = unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM, 0)
	expect("vsock", err, unix.EPERM)
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	expect("unix socket", err, nil)
	unix.Close(fd)
	_, err = os.ReadFile("/proc/self/status")
	expect("read a file", err, nil)
	expect("start a program", exec.Command("/bin/true").Run(), nil)
	os.Exit(0)
}

func install(prog []byte) error {
	filters := make([]unix.SockFilter, len(prog)/8)
	for i := range filters {
		b := prog[8*i:]
		filters[i] = unix.SockFilter{Code: binary.LittleEndian.Uint16(b), Jt: b[2], Jf: b[3], K: binary.LittleEndian.Uint32(b[4:])}
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	fprog := unix.SockFprog{Len: uint16(len(filters)), Filter: &filters[0]}
	_, _, e := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&fprog)))
	runtime.KeepAlive(filters)
	if e != 0 {
		return e
	}
	return nil
}

// TestInstalled has the kernel judge.
func TestInstalled(t *testing.T) {
	if _, err := abis(runtime.GOARCH); err != nil {
		t.Skip(err)
	}
	for _, caps := range []string{"", "CAP_SYS_ADMIN"} {
		cmd := exec.CommandContext(t.Context(), os.Args[0])
		cmd.Env = append(os.Environ(), childEnv+"="+caps)
		if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("%q: %v\n%s", caps, err, out)
		}
	}
}

// TestGeneratedTables: tables_gen.go is what gen.go makes of the x/sys in use.
func TestGeneratedTables(t *testing.T) {
	if testing.Short() {
		t.Skip("runs the go command")
	}
	was, err := os.ReadFile("tables_gen.go")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "tables.go")
	cmd := exec.CommandContext(t.Context(), "go", "run", "gen.go", "-o", path)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	now, err := os.ReadFile(path)
	if err != nil || string(now) != string(was) {
		t.Error("tables_gen.go is stale: go generate")
	}
}
