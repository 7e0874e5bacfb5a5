package node

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/moby/moby/api/types/container"

	"github.com/cradlevm/cradle/image"
)

// Containers go on from a snapshot, each as itself, also under another daemon and without the source.
func TestNamedSnapshot(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		ctx := context.Background()
		id := h.remembering("one", "42")
		s, err := h.SnapshotCreate(ctx, "kept", "one")
		if err != nil || s.Name != "kept" || s.Container != "one" {
			t.Fatalf("%+v, %v", s, err)
		}
		synctest.Wait()
		if h.driver.Machine(id).Frozen(id) {
			t.Error("the source stands still")
		}
		h.driver.Machine(id).Process(id).Remember("43")
		_, err = h.SnapshotCreate(ctx, "kept", "one")
		wantConflict(t, err)
		unnamed, err := h.SnapshotCreate(ctx, "", "one")
		if err != nil || unnamed.Name == "" {
			t.Fatalf("%+v, %v", unnamed, err)
		}
		if err := h.SnapshotRemove(ctx, unnamed.Name); err != nil {
			t.Error(err)
		}
		if err := h.ContainerRemove(ctx, "one", true, true); err != nil {
			t.Fatal(err)
		}
		h.restart()
		if list, err := h.SnapshotList(ctx); err != nil || len(list) != 1 || list[0].Name != "kept" || list[0].Damaged != "" {
			t.Fatalf("%+v, %v", list, err)
		}
		seen := map[string]bool{id: true}
		for _, name := range []string{"two", "three"} {
			made, err := h.SnapshotRun(ctx, "kept", name)
			if err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			h.wantState(name, container.StateRunning, 0)
			if got := h.output(name); got != "remembered 42\n" {
				t.Errorf("%s says %q", name, got)
			}
			if got := h.onDisk(made, 2); got != "42" {
				t.Errorf("%s has %q on its disk", name, got)
			}
			who := h.driver.Machine(made).Identified()
			if len(who) != 1 {
				t.Fatalf("identities: %+v", who)
			}
			for _, word := range []string{made, who[0].BootID, who[0].MachineID, who[0].Hostname} {
				if word == "" || seen[word] {
					t.Errorf("%s shares %q", name, word)
				}
				seen[word] = true
			}
		}
		if err := h.SnapshotRemove(ctx, "kept"); err != nil {
			t.Error(err)
		}
		_, err = h.SnapshotRun(ctx, "kept", "four")
		if err == nil || !strings.Contains(err.Error(), "No such snapshot") {
			t.Errorf("removed: %v", err)
		}
		if left, err := os.ReadDir(h.path("root", "snapshots")); err != nil || len(left) > 0 {
			t.Errorf("left: %v, %v", left, err)
		}
	})
}

// What is damaged, swapped or no name is refused; what fails leaves nothing.
func TestBadSnapshot(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		ctx := context.Background()
		h.remembering("one", "42")
		for _, name := range []string{"../one", ".new-1", "a/b", "-x", strings.Repeat("n", 64)} {
			if _, err := h.SnapshotCreate(ctx, name, "one"); err == nil {
				t.Errorf("created %q", name)
			}
			if err := h.SnapshotRemove(ctx, name); err == nil {
				t.Errorf("removed %q", name)
			}
			if _, err := h.SnapshotRun(ctx, name, ""); err == nil {
				t.Errorf("run %q", name)
			}
		}
		h.driver.FailWrite(errors.New("disk full"))
		if _, err := h.SnapshotCreate(ctx, "full", "one"); err == nil {
			t.Error("created on a full disk")
		}
		h.driver.FailWrite(nil)
		if left, err := os.ReadDir(h.path("root", "snapshots")); err != nil || len(left) > 0 {
			t.Errorf("left: %v, %v", left, err)
		}
		h.wantState("one", container.StateRunning, 0)
		for _, name := range []string{"a", "b", "c"} {
			if _, err := h.SnapshotCreate(ctx, name, "one"); err != nil {
				t.Fatal(err)
			}
		}
		// Its disk is cut, its manifest another one's name's.
		if err := os.Truncate(h.path("root", "snapshots", "a", scratchName), 1<<20); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(os.RemoveAll(h.path("root", "snapshots", "c")),
			os.Rename(h.path("root", "snapshots", "b"), h.path("root", "snapshots", "c"))); err != nil {
			t.Fatal(err)
		}
		h.images.Release(shelfOwner("b")) // whoever renames behind our back has that to do, too
		before := len(h.all())
		for _, name := range []string{"a", "c"} {
			_, err := h.SnapshotRun(ctx, name, "")
			wantConflict(t, err)
			if err == nil || !strings.Contains(err.Error(), "damaged") {
				t.Errorf("%s: %v", name, err)
			}
			if err := h.SnapshotRemove(ctx, name); err != nil {
				t.Error(err)
			}
		}
		if len(h.all()) != before {
			t.Error("a container is left")
		}
	})
}

// An image that a snapshot is of is not removed but by force, in docker's words for a container that uses it; its hold goes with
// the snapshot, and comes back where a crash has lost it. What is warm does not keep its image, and goes with it.
func TestSnapshotKeepsItsImage(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		ctx := context.Background()
		h.serving()
		h.run("warm", "serve", warm(warmAfterLabel, "5s"))
		h.settled()
		if len(h.warmImages()) != 1 {
			t.Fatalf("warm images: %v", h.warmImages())
		}
		h.remembering("one", "42")
		if _, err := h.SnapshotCreate(ctx, "kept", "one"); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"one", "warm"} {
			if err := h.ContainerRemove(ctx, name, true, true); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		for ref, want := range map[string]string{
			"img":          `conflict: unable to remove repository reference "img" (must force) - snapshot kept is using its referenced image 111111111111`,
			"111111111111": "conflict: unable to delete 111111111111 (must be forced) - image is being used by snapshot kept",
		} {
			_, err := h.ImageRemove(ctx, ref, false, false)
			wantConflict(t, err)
			if err == nil || err.Error() != want {
				t.Errorf("%v", err)
			}
		}
		if h.images.held() != 1 {
			t.Errorf("%d holds", h.images.held())
		}
		h.stop()
		h.images.Release(shelfOwner("kept")) // a crash between the snapshot and its hold
		h.open()
		if h.images.held() != 1 {
			t.Errorf("%d holds, under the next daemon", h.images.held())
		}
		if len(h.warmImages()) != 1 {
			t.Errorf("warm images: %v", h.warmImages())
		}
		if err := h.SnapshotRemove(ctx, "kept"); err != nil {
			t.Fatal(err)
		}
		if h.images.held() != 0 {
			t.Errorf("%d holds, without the snapshot", h.images.held())
		}
		if _, err := h.ImageRemove(ctx, "img", false, false); err != nil {
			t.Error(err)
		}
		if len(h.warmImages()) != 0 {
			t.Errorf("warm images: %v", h.warmImages())
		}
	})
}

// A snapshot whose image goes while it is made is not made.
func TestSnapshotWithoutImage(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		h.remembering("one", "42")
		h.images.fail = image.ErrNotFound
		_, err := h.SnapshotCreate(context.Background(), "kept", "one")
		wantNotFound(t, err)
		h.images.fail = nil
		if left, err := os.ReadDir(h.path("root", "snapshots")); err != nil || len(left) > 0 {
			t.Errorf("left: %v, %v", left, err)
		}
	})
}
