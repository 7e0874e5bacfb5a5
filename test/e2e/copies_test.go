package e2e

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// standing are the processes of virtual machines that stand still under the daemon's ptrace: those that others are copied from, and copies that are being
// made.
func (c client) standing(t *testing.T) (pids []int) {
	t.Helper()
	records, err := filepath.Glob(filepath.Join(c.house.Run(), "s", "*", "qemu.pid"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range records {
		b, _ := os.ReadFile(path)
		fields := strings.Fields(string(b))
		if len(fields) == 0 {
			continue // it comes or goes
		}
		status, _ := os.ReadFile(filepath.Join("/proc", fields[0], "status"))
		pid, err := strconv.Atoi(fields[0])
		if err == nil && strings.HasPrefix(string(status), "Name:\tqemu") && strings.Contains(string(status), "State:\tt ") {
			pids = append(pids, pid)
		}
	}
	return pids
}

// Far more runs at once than there are ready virtual machines, while those that others are copied from are killed again and again: each is served, has
// an identity of its own, and nothing is left.
func TestManyAtOnceWhileParentsDie(t *testing.T) {
	const many, atOnce = 40, 10
	c := inOwn(t, "CRADLE_POOL=4")
	c.ok(t, "run", "--rm", "busybox", "true")
	c.awaitPool(t, 4)
	if len(c.standing(t)) == 0 {
		t.Skip("virtual machines are not copied here")
	}
	over, killed := make(chan struct{}), make(chan int)
	go func() {
		count := 0
		for {
			select {
			case <-over:
				killed <- count
				return
			case <-time.After(500 * time.Millisecond):
			}
			for _, pid := range c.standing(t) {
				if syscall.Kill(pid, syscall.SIGKILL) == nil {
					count++
				}
			}
		}
	}()
	var all sync.WaitGroup
	var mu sync.Mutex
	seen := map[string]bool{}
	turns := make(chan struct{}, atOnce)
	for range many {
		all.Go(func() {
			turns <- struct{}{}
			defer func() { <-turns }()
			r := c.do(t, nil, "run", "--rm", "busybox", "sh", "-c", "hostname; cat /proc/sys/kernel/random/boot_id; cat /proc/sys/kernel/random/uuid")
			words := strings.Fields(r.stdout)
			if r.code != 0 || len(words) != 3 {
				t.Errorf("%+v", r)
			}
			mu.Lock()
			defer mu.Unlock()
			for _, w := range words {
				if seen[w] {
					t.Errorf("%s has been seen before", w)
				}
				seen[w] = true
			}
		})
	}
	all.Wait()
	close(over)
	n := <-killed
	t.Logf("%d parents were killed", n)
	if n == 0 {
		t.Error("no parent was killed")
	}
	if got := c.ok(t, "ps", "-aq"); got != "" {
		t.Errorf("containers are left: %s", got)
	}
	// It recovers: there are parents again, and what is ready is copied.
	c.awaitPool(t, 4)
}
