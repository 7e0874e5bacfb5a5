package pool

import (
	"bytes"
	"encoding/binary"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"
)

// Memory that is written is private; processor time is what the kernel says.
func TestCostOf(t *testing.T) {
	before, err := CostOf(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	const size = 32 << 20
	mem, err := syscall.Mmap(-1, 0, size, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_PRIVATE|syscall.MAP_ANON)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Munmap(mem)
	for begun := time.Now(); time.Since(begun) < 50*time.Millisecond; {
		for i := 0; i < size; i += 4096 {
			mem[i]++
		}
	}
	after, err := CostOf(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if more := after.Private - before.Private; more < size*3/4 || more > size*2 {
		t.Errorf("private grows by %d", more)
	}
	if after.Shared <= 0 || after.CPU <= before.CPU {
		t.Errorf("before %+v, after %+v", before, after)
	}
	// What has gone costs nothing that could be told.
	c := exec.Command("true")
	if err := c.Run(); err != nil {
		t.Skip(err)
	}
	if cost, err := CostOf(c.Process.Pid); err == nil && cost.Private > 0 {
		t.Errorf("of a process that has gone: %+v", cost)
	}
}

// Memory that a process has inherited is shared until it writes there. A page of a file is never its own.
func TestExclusive(t *testing.T) {
	var b []byte
	for _, e := range []uint64{
		0, pagePresent, pagePresent | pageExclusive, pagePresent | pageExclusive | 0x1234, pagePresent | pageShared | pageExclusive,
		pagePresent | pageShared, pageSwapped | 7,
	} {
		b = binary.NativeEndian.AppendUint64(b, e)
	}
	if n, err := exclusive(bytes.NewReader(b)); n != 3 || err != nil {
		t.Errorf("%d, %v; want 3", n, err)
	}
}

func TestCPUTime(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"7 (a) b) S 1 1 1 0 -1 0 0 0 0 0 250 50 0 0 20 0": 3 * time.Second,
		"7 (x) S 1 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0":       0,
	} {
		if got, err := cpuTime([]byte(text)); err != nil || got != want {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "7 (x)", "7 (x) S 1 2", "7 (x) S 1 1 1 0 -1 0 0 0 0 0 no 50 0"} {
		if _, err := cpuTime([]byte(text)); err == nil {
			t.Errorf("%q is read", text)
		}
	}
}
