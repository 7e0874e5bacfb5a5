package node

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/moby/moby/api/types/container"
)

// refused opens the house, which must fail with one line that has text.
func (h *house) refused(text string) {
	h.t.Helper()
	n, err := Open(context.Background(), h.options())
	if err == nil {
		n.Close()
		h.t.Fatal("it opens")
	}
	if !strings.Contains(err.Error(), text) || strings.Contains(err.Error(), "\n") {
		h.t.Errorf("error %q, want one line with %q", err, text)
	}
}

func TestNewerStore(t *testing.T) {
	h := newHouse(t)
	h.create("a", "sleep")
	h.stop()
	db, err := bolt.Open(h.path("root", "state.db"), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	version := func(v string) {
		if err := db.Update(func(tx *bolt.Tx) error { return tx.Bucket(bucketMeta).Put(keyVersion, []byte(v)) }); err != nil {
			t.Fatal(err)
		}
	}
	version("3")
	db.Close()
	h.refused("newer cradle (layout 3, this one knows 2)")
	if db, err = bolt.Open(h.path("root", "state.db"), 0o600, nil); err != nil {
		t.Fatal(err)
	}
	version("1")
	db.Close()
	h.open() // an older one is taken up
	h.wantState("a", container.StateCreated, 0)
}

// A file that is damaged, wherever it is, is refused in one sentence or has lost nothing; it never crashes the
// daemon.
func TestTornStore(t *testing.T) {
	for name, request := range map[string]func(*container.CreateRequest){
		"lasting": func(*container.CreateRequest) {}, "fleeting": autoRemove,
	} {
		t.Run(name, func(t *testing.T) {
			h := newHouse(t)
			for range 20 {
				h.create("", "sleep", request)
			}
			path := h.store.lasting.Path()
			if name == "fleeting" {
				path = h.store.fleeting.Path()
			}
			h.stop()
			whole, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			page := os.Getpagesize()
			for at := 0; at < len(whole); at += page {
				h.torn20(path, "cut", at, whole[:at])
				zeroed := append([]byte{}, whole...)
				clear(zeroed[at : at+page])
				h.torn20(path, "zeroed page", at, zeroed)
			}
			if err := os.WriteFile(path, whole, 0o600); err != nil {
				t.Fatal(err)
			}
			h.open()
			if n := len(h.all()); n != 20 {
				t.Errorf("%d containers", n)
			}
		})
	}
}

// torn20 opens the store, which had 20 records, with one of its files spoilt.
func (h *house) torn20(path, what string, at int, spoilt []byte) {
	h.t.Helper()
	if err := os.WriteFile(path, spoilt, 0o600); err != nil {
		h.t.Fatal(err)
	}
	st, err := openStore(h.path("root"))
	if err != nil {
		if strings.Contains(err.Error(), "\n") {
			h.t.Errorf("%s at %d: %q is more than a line", what, at, err)
		}
		return
	}
	defer st.Close()
	records, err := st.all()
	least := 20
	if at < 2*os.Getpagesize() { // the pages that name the last two transactions: either will do
		least = 19
	}
	if len(spoilt) > 0 && err == nil && len(records) < least {
		h.t.Errorf("%s at %d: %d records of 20, and no error", what, at, len(records))
	}
}

// lose makes the file of fleeting records what a power failure may leave of it: torn, and of an earlier boot.
func (h *house) lose(path string) {
	h.t.Helper()
	whole, err := os.ReadFile(path)
	if err == nil {
		err = os.WriteFile(h.path("root", "state-11111111-2222-3333-4444-555555555555.db"), whole[:len(whole)/2], 0o600)
	}
	if err = errors.Join(err, os.Remove(path)); err != nil {
		h.t.Fatal(err)
	}
}

// After a power failure everything is there that was to last, whole, and nothing of what ends with the host.
func TestPowerFailure(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		lasting := map[string]container.ContainerState{"created": container.StateCreated, "ran": container.StateExited, "hibernated": container.StateExited}
		h.create("created", "sleep")
		ran := h.run("ran", "sleep")
		h.remembering("hibernated", "42", autoRemove)
		if err := h.ContainerSaveState(context.Background(), "hibernated"); err != nil {
			t.Fatal(err)
		}
		h.create("never-started", "sleep", autoRemove)
		gone := []string{h.run("rm", "sleep", autoRemove), h.run("rm-too", "sleep", autoRemove)}
		path := h.store.fleeting.Path()
		h.crash()
		for _, id := range append(gone, ran) {
			h.driver.Machine(id).Die(nil)
		}
		h.lose(path)
		h.open()
		if n := len(h.all()); n != len(lasting) {
			t.Errorf("%d containers", n)
		}
		if n := h.images.held(); n != len(lasting) {
			t.Errorf("%d of them keep the image", n)
		}
		for name, state := range lasting {
			h.wantState(name, state, map[container.ContainerState]int{container.StateExited: 137}[state])
		}
		if files, err := filepath.Glob(h.path("root", "state-*.db")); err != nil || len(files) != 1 || files[0] != path {
			t.Errorf("files of records: %v, %v", files, err)
		}
		h.start("hibernated")
		h.wantState("hibernated", container.StateRunning, 0)
		h.finish()
	})
}

func TestUnwritableRoot(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Skip("root may write everywhere")
	}
	h := emptyHouse(t)
	if err := os.Chmod(h.path("root"), 0o500); err != nil {
		t.Fatal(err)
	}
	defer os.Chmod(h.path("root"), 0o700)
	h.refused("permission denied")
}

// No daemon starts on a disk that may only be read, and nothing is lost by that.
func TestReadOnlyDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	h := emptyHouse(t)
	if err := syscall.Mount("tmpfs", h.path("root"), "tmpfs", 0, "size=16m"); err != nil {
		t.Skip(err)
	}
	defer syscall.Unmount(h.path("root"), syscall.MNT_DETACH)
	remount := func(flags uintptr) {
		t.Helper()
		if err := syscall.Mount("", h.path("root"), "", syscall.MS_REMOUNT|flags, ""); err != nil {
			t.Fatal(err)
		}
	}
	h.open()
	h.create("a", "sleep")
	h.stop()
	remount(syscall.MS_RDONLY)
	h.refused("read-only file system")
	remount(0)
	h.open()
	h.wantState("a", container.StateCreated, 0)
	h.finish()
}

// On a full disk what runs can be stopped and removed; what is refused is refused whole.
func TestFullDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	h := emptyHouse(t)
	if err := syscall.Mount("tmpfs", h.path("root"), "tmpfs", 0, "size=16m"); err != nil {
		t.Skip(err)
	}
	defer syscall.Unmount(h.path("root"), syscall.MNT_DETACH)
	h.open()
	ctx := context.Background()
	h.run("a", "sleep")
	big, err := os.Create(h.path("root", "big"))
	if err != nil {
		t.Fatal(err)
	}
	defer big.Close()
	for chunk := make([]byte, 4096); ; {
		if _, err := big.Write(chunk); err != nil {
			break
		}
	}
	for range 5 {
		if id, err := h.tryCreate("b", "sleep"); err == nil {
			if err := h.ContainerStart(ctx, id); err == nil {
				t.Error("a container starts without a disk")
			}
			if err := h.ContainerRemove(ctx, id, false, false); err != nil {
				t.Error(err)
			}
		}
	}
	if err := h.ContainerStop(ctx, "a", "", nil); err != nil {
		t.Error(err)
	}
	h.wantState("a", container.StateExited, 143)
	h.torn("a")
	h.noMachine()
	if err := h.ContainerRemove(ctx, "a", false, false); err != nil {
		t.Error(err)
	}
	if err := os.Remove(big.Name()); err != nil {
		t.Fatal(err)
	}
	h.run("c", "sleep")
	h.finish()
}

// Two daemons do not share a state.
func TestSecondDaemon(t *testing.T) {
	h := newHouse(t)
	h.refused("another daemon has it open")
}

// A clock that jumps, either way, changes nothing that lasts.
func TestClockJump(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		for name, jump := range map[string]time.Duration{"future": 1000 * time.Hour, "past": -1000 * time.Hour} {
			id := h.run(name, "sleep", restartPolicy(container.RestartPolicyOnFailure, 1))
			c, err := h.find(id)
			if err != nil {
				t.Fatal(err)
			}
			if err := c.change(func(r *record) { r.Started = r.Started.Add(jump) }); err != nil {
				t.Fatal(err)
			}
			s, err := h.ContainerList(context.Background(), false, 0, false, nil)
			if err != nil || len(s) != 1 {
				t.Fatal(s, err)
			}
			if err := h.ContainerStats(context.Background(), id, false, true, func(s container.StatsResponse) error {
				if s.CPUStats.SystemUsage > 1<<62 {
					t.Errorf("system usage %d", s.CPUStats.SystemUsage)
				}
				return nil
			}); err != nil {
				t.Error(err)
			}
			h.driver.Machine(id).Die(nil)
			time.Sleep(time.Minute)
			h.wantState(id, container.StateRunning, 0) // restarted
			if err := h.ContainerRemove(context.Background(), id, true, false); err != nil {
				t.Fatal(err)
			}
		}
	})
}
