package vmtest

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cradlevm/cradle/vm"
	"github.com/cradlevm/cradle/vm/vmtest/guestapi"
)

// starterVariable holds, in the process that starts a VM to be taken over, the VM's configuration.
const starterVariable = "CRADLE_VMTEST_START"

// startedLine begins the line with which that process tells that its VM runs; the VM's process number follows.
const startedLine = "vmtest started "

// order is what the starting process is to do.
type order struct {
	Config vm.Config
	Saved  string // directory of the state to restore; empty: boot
	// Parent is the VM to boot, freeze and copy; nil: the VM is no copy.
	Parent *vm.Config
	// Checkpoint has the VM started, and then stand still in a checkpoint that never ends.
	Checkpoint bool
}

func (o order) start(t *testing.T, driver vm.Driver) (vm.VM, error) {
	if o.Parent != nil {
		parent, err := driver.Start(within(t), *o.Parent)
		if err != nil {
			return nil, err
		}
		watched(t, parent, *o.Parent).session().Close()
		source, err := parent.(vm.Freezer).Freeze(within(t))
		if err != nil {
			return nil, err
		}
		return source.Restore(within(t), o.Config)
	}
	if o.Saved == "" {
		return driver.Start(within(t), o.Config)
	}
	saved, err := driver.(vm.Restorer).Load(within(t), o.Saved)
	if err != nil {
		return nil, err
	}
	return saved.Restore(within(t), o.Config)
}

func starter() bool { return os.Getenv(starterVariable) != "" }

// startForParent starts the VM that the parent process has described and waits to be killed. Should the parent go
// first, it ends the VM.
func startForParent(t *testing.T, driver vm.Driver) {
	var o order
	if err := json.Unmarshal([]byte(os.Getenv(starterVariable)), &o); err != nil {
		t.Fatal(err)
	}
	v, err := o.start(t, driver)
	if err != nil {
		t.Fatal(err)
	}
	wait := func(context.Context) error {
		fmt.Printf("%s%d\n", startedLine, v.PID())
		io.Copy(io.Discard, os.Stdin)
		return nil
	}
	if o.Checkpoint {
		v.(vm.Checkpointer).Checkpoint(within(t), nil, wait)
	} else {
		wait(within(t))
	}
	v.Kill()
}

// startElsewhere starts a VM in a process of its own, which is then killed the hard way, and returns the number of
// the monitor's process.
func startElsewhere(t *testing.T, o order) (pid int) {
	t.Helper()
	body, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	top, _, _ := strings.Cut(t.Name(), "/")
	cmd := exec.Command(os.Args[0], "-test.run=^"+top+"$", "-test.timeout=120s")
	cmd.Env = append(os.Environ(), starterVariable+"="+string(body))
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	late := time.AfterFunc(limit, func() { cmd.Process.Kill() })
	defer late.Stop()
	for lines := bufio.NewScanner(stdout); lines.Scan(); {
		if number, ok := strings.CutPrefix(lines.Text(), startedLine); ok {
			if pid, err = strconv.Atoi(number); err != nil {
				t.Fatal(err)
			}
			return pid
		}
		t.Log("the starting process:", lines.Text())
	}
	t.Fatal("the starting process has not started a VM")
	return 0
}

// takeOver attaches to a VM that a process started which has been killed since.
func (s *suite) takeOver(t *testing.T, c vm.Config, pid int) *machine {
	t.Helper()
	v, err := s.driver.Attach(within(t), c)
	if err != nil {
		syscall.Kill(pid, syscall.SIGKILL)
		t.Fatal(err)
	}
	m := watched(t, v, c)
	if m.PID() != pid {
		t.Errorf("attached to process %d, want %d", m.PID(), pid)
	}
	return m
}

// testTakenOver takes over a VM that goes on from another; it lives, and takes a disk.
func (s *suite) testTakenOver(t *testing.T, o order) {
	t.Helper()
	m := s.takeOver(t, o.Config, startElsewhere(t, o))
	ping(t, m.session())
	disk := newDisk(t, "LATE", 64<<10)
	plug(t, m, disk)
	call(t, m.session(), guestapi.MethodAwait, guestapi.Await{Serial: disk.Serial, Present: true}, nil)
}

// testAttach takes over a VM whose daemon has crashed.
func (s *suite) testAttach(t *testing.T) {
	c := s.config(t)
	disk := newDisk(t, "BOOTDISK", 64<<10)
	c.Disks = []vm.Disk{disk}
	pid := startElsewhere(t, order{Config: c})
	if !runs(pid) {
		t.Fatal("the VM has gone with the process that started it")
	}
	m := s.takeOver(t, c, pid)
	client := m.session()
	ping(t, client)
	call(t, client, guestapi.MethodAwait, guestapi.Await{Serial: disk.Serial, Present: true}, nil)
	if p, ok := m.VM.(vm.DiskPlugger); ok {
		if err := p.Plug(within(t), disk); !errors.Is(err, vm.ErrInvalid) {
			t.Errorf("plugging what is there since before the attach: %v, want ErrInvalid", err)
		}
		other := newDisk(t, "OTHER", 64<<10)
		if err := p.Plug(within(t), other); err != nil {
			t.Error(err)
		}
		call(t, client, guestapi.MethodAwait, guestapi.Await{Serial: other.Serial, Present: true}, nil)
		if err := p.Unplug(within(t), disk.Serial); err != nil {
			t.Error(err)
		}
		call(t, client, guestapi.MethodAwait, guestapi.Await{Serial: disk.Serial}, nil)
	}
	call(t, client, guestapi.MethodPrint, guestapi.Print{Text: "words after the attach\n"}, nil)
	select {
	case <-m.Done():
		t.Fatal("ended early")
	default:
	}
	syscall.Kill(pid, syscall.SIGKILL)
	if err := m.end(); !errors.Is(err, vm.ErrExited) || !strings.Contains(err.Error(), "words after the attach") {
		t.Errorf("after kill -9 of an attached VM: %v; want ErrExited with the console's end", err)
	}
	if _, err := s.driver.Attach(within(t), c); !errors.Is(err, vm.ErrExited) {
		t.Errorf("Attach after the end: %v, want ErrExited", err)
	}

	// The same once more, with nobody there when the VM ends.
	pid = startElsewhere(t, order{Config: c})
	syscall.Kill(pid, syscall.SIGKILL)
	for began := time.Now(); runs(pid); time.Sleep(time.Millisecond) {
		if time.Since(began) > limit {
			t.Fatalf("process %d does not die", pid)
		}
	}
	if _, err := s.driver.Attach(within(t), c); !errors.Is(err, vm.ErrExited) {
		t.Errorf("Attach to a VM that has ended: %v, want ErrExited", err)
	}
	checkLeft(t, c.Dir)

	// One that nobody has a use for is ended, be it that its monitor does not answer any more.
	pid = startElsewhere(t, order{Config: c})
	syscall.Kill(pid, syscall.SIGSTOP)
	for range 2 { // the second time there is none
		if err := s.driver.End(c.Dir); err != nil {
			t.Error(err)
		}
	}
	if runs(pid) {
		t.Errorf("process %d runs after its end", pid)
		syscall.Kill(pid, syscall.SIGKILL)
	}
	checkLeft(t, c.Dir)
}
