package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"

	"github.com/moby/moby/api/types/container"

	"github.com/cradlevm/cradle/image"
	"github.com/cradlevm/cradle/snapshot"
)

// Save writes an archive of the one image, which only LoadUnnamed reads.
func (s *images) Save(_ context.Context, refs []string, w io.Writer) error {
	_, err := io.WriteString(w, "image "+strings.Join(refs, " "))
	return err
}

// LoadUnnamed brings the image back.
func (s *images) LoadUnnamed(_ context.Context, r io.Reader, id string) (image.Image, error) {
	b, err := io.ReadAll(r)
	if err != nil || string(b) != "image "+id {
		return image.Image{}, fmt.Errorf("%w: %q, %w", image.ErrInvalid, b, err)
	}
	s.mu.Lock()
	s.gone = false
	s.mu.Unlock()
	return s.Get(id)
}

// exported is a snapshot "kept" of a container that remembers 42, as an archive; nothing is left in the house.
func (h *house) exported(withImage bool) []byte {
	h.t.Helper()
	ctx := context.Background()
	h.remembering("one", "42", func(r *container.CreateRequest) { r.Env, r.Labels = []string{"A=b"}, map[string]string{"c": "d"} })
	if _, err := h.SnapshotCreate(ctx, "kept", "one"); err != nil {
		h.t.Fatal(err)
	}
	var b bytes.Buffer
	begun := 0
	if err := h.SnapshotExport(ctx, "kept", withImage, func() { begun++ }, &b); err != nil || begun != 1 {
		h.t.Fatalf("begun %d times, %v", begun, err)
	}
	if err := errors.Join(h.SnapshotRemove(ctx, "kept"), h.ContainerRemove(ctx, "one", true, true)); err != nil {
		h.t.Fatal(err)
	}
	return b.Bytes()
}

// noSnapshot fails the test when anything of one is left.
func (h *house) noSnapshot() {
	h.t.Helper()
	if left, err := os.ReadDir(h.path("root", "snapshots")); err != nil || len(left) > 0 {
		h.t.Errorf("snapshots are left: %v, %v", left, err)
	}
	if n := h.images.held(); n != 0 {
		h.t.Errorf("%d holds are left", n)
	}
}

// A snapshot goes on in another installation, as itself, with the image that it brings along.
func TestSnapshotTravels(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		ctx := context.Background()
		archive := h.exported(true)
		other := newHouse(t)
		other.images.gone = true
		if _, err := other.SnapshotImport(ctx, "", false, bytes.NewReader(archive)); err == nil || !strings.Contains(err.Error(), "--trust") {
			t.Errorf("without trust: %v", err)
		}
		other.noSnapshot()
		s, err := other.SnapshotImport(ctx, "", true, bytes.NewReader(archive))
		if err != nil || s.Name != "kept" || s.Container != "one" || s.Image != "img" || s.Bytes == 0 {
			t.Fatalf("%+v, %v", s, err)
		}
		_, err = other.SnapshotImport(ctx, "", true, bytes.NewReader(archive))
		wantConflict(t, err)
		if again, err := other.SnapshotImport(ctx, "again", true, bytes.NewReader(archive)); err != nil || again.Name != "again" {
			t.Fatalf("%+v, %v", again, err)
		}
		if other.images.held() != 2 {
			t.Errorf("%d holds", other.images.held())
		}
		if err := h.key.Verify(other.path("root", "snapshots", "kept"), new(namedManifest)); !errors.Is(err, snapshot.ErrForeign) {
			t.Errorf("it is signed with the first one's key: %v", err)
		}
		other.restart()
		seen := map[string]bool{}
		for _, name := range []string{"two", "three"} {
			made, err := other.SnapshotRun(ctx, "kept", name)
			if err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			other.wantState(name, container.StateRunning, 0)
			if got := other.output(name); got != "remembered 42\n" {
				t.Errorf("%s says %q", name, got)
			}
			if got := other.onDisk(made, 2); got != "42" {
				t.Errorf("%s has %q on its disk", name, got)
			}
			in, err := other.ContainerInspect(ctx, made, false)
			if err != nil || in.Config.Labels["c"] != "d" || len(in.Config.Env) == 0 || in.Config.Env[0] != "A=b" {
				t.Errorf("%+v, %v", in.Config, err)
			}
			who := other.driver.Machine(made).Identified()
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
		// It travels on from there.
		var b bytes.Buffer
		if err := other.SnapshotExport(ctx, "again", true, func() {}, &b); err != nil {
			t.Fatal(err)
		}
		if _, err := h.SnapshotImport(ctx, "back", true, &b); err != nil {
			t.Error(err)
		}
		for _, x := range []struct {
			*house
			name string
		}{{h, "back"}, {other, "kept"}, {other, "again"}} {
			if err := x.SnapshotRemove(ctx, x.name); err != nil {
				t.Error(err)
			}
		}
	})
}

// What cannot be run here is refused, with what to do, before anything is written.
func TestUnsuitableArchive(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		ctx := context.Background()
		archive := h.exported(false)
		other := newHouse(t)
		refused := func(text string) {
			t.Helper()
			if _, err := other.SnapshotImport(ctx, "", true, bytes.NewReader(archive)); err == nil || !strings.Contains(err.Error(), text) {
				t.Errorf("want %q: %v", text, err)
			}
			other.noSnapshot()
		}
		other.images.gone = true
		refused("load that first")
		other.images.gone = false
		other.driver.Upgrade("2")
		refused("another version of the virtual machine monitor")
		other.driver.Upgrade("")
		if _, err := other.SnapshotImport(ctx, "../x", true, bytes.NewReader(archive)); err == nil || !strings.Contains(err.Error(), "invalid name") {
			t.Errorf("%v", err)
		}
		if _, err := other.SnapshotImport(ctx, "", true, strings.NewReader("no archive")); err == nil {
			t.Error("taken")
		}
		cancelled, cancel := context.WithCancel(ctx)
		cancel()
		if _, err := other.SnapshotImport(cancelled, "", true, bytes.NewReader(archive)); err == nil {
			t.Error("its client has gone")
		}
		other.noSnapshot()
		if _, err := other.SnapshotImport(ctx, "", true, bytes.NewReader(archive)); err != nil {
			t.Error(err)
		}
		if err := other.SnapshotRemove(ctx, "kept"); err != nil {
			t.Error(err)
		}
	})
}

// Whatever is cut off or changed, or said in the head, nothing of it is left.
func TestBadSnapshotArchive(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		ctx := context.Background()
		archive := h.exported(true)
		bad := func(what string, b []byte) {
			t.Helper()
			s, err := h.SnapshotImport(ctx, "", true, bytes.NewReader(b))
			if err == nil {
				t.Errorf("%s: taken, %+v", what, s)
			}
			h.noSnapshot()
		}
		end := len(archive) - 1024 - 448
		for i := 0; i < end; i += end/40 + 1 {
			bad(fmt.Sprintf("cut at %d", i), archive[:i])
			flipped := bytes.Clone(archive)
			flipped[i+150] ^= 1 // a header's checksum, or contents
			if _, err := h.SnapshotImport(ctx, "", true, bytes.NewReader(flipped)); err == nil {
				if err := h.SnapshotRemove(ctx, "kept"); err != nil { // it was in what fills a block
					t.Error(err)
				}
			}
			h.noSnapshot()
		}
		for what, f := range map[string]func(*archiveHead){
			"format":     func(a *archiveHead) { a.Format++ },
			"name":       func(a *archiveHead) { a.Snapshot.Name = "../x" },
			"image":      func(a *archiveHead) { a.Snapshot.Source.ImageID = "img" },
			"guest":      func(a *archiveHead) { a.Snapshot.Guest = "../x" },
			"container":  func(a *archiveHead) { a.Snapshot.Source.Name = "/a/b" },
			"CPUs":       func(a *archiveHead) { a.Snapshot.Config.VM.CPUs = 1 << 20 },
			"memory":     func(a *archiveHead) { a.Snapshot.Config.VM.Memory = 1 << 60 },
			"interfaces": func(a *archiveHead) { a.Snapshot.Config.VM.NICs = nil },
			"disks":      func(a *archiveHead) { a.Snapshot.Config.VM.Disks = a.Snapshot.Config.VM.Disks[1:] },
			"layers":     func(a *archiveHead) { a.Layers = append(a.Layers, "x") },
			"digest":     func(a *archiveHead) { a.Snapshot.Digest = strings.Repeat("0", 64) },
			"disk":       func(a *archiveHead) { a.Snapshot.Scratch = strings.Repeat("0", 64) },
			"disk size":  func(a *archiveHead) { a.Snapshot.Source.HostConfig.StorageOpt = map[string]string{"size": "16m"} },
			"networks":   func(a *archiveHead) { a.Snapshot.Source.Links = []link{{Name: "a"}, {Name: "a"}} },
			"a network":  func(a *archiveHead) { a.Snapshot.Source.Links = []link{{Name: "../a"}} },
			"sharing":    func(a *archiveHead) { a.Snapshot.Source.HostConfig.NetworkMode = "container:other" },
			"devices": func(a *archiveHead) {
				a.Snapshot.Source.HostConfig.Devices = []container.DeviceMapping{{PathOnHost: "/dev/sda", PathInContainer: "/dev/sda"}}
			},
			"directories": func(a *archiveHead) { a.Snapshot.Source.HostConfig.Binds = []string{"/:/host"} },
		} {
			bad(what, withHead(t, archive, f))
		}
		if _, err := h.SnapshotImport(ctx, "", true, bytes.NewReader(withHead(t, archive, func(*archiveHead) {}))); err != nil {
			t.Errorf("unchanged: %v", err)
		}
		if err := h.SnapshotRemove(ctx, "kept"); err != nil {
			t.Error(err)
		}
	})
}

// withHead is an archive, whole again, with another head.
func withHead(t *testing.T, archive []byte, change func(*archiveHead)) []byte {
	t.Helper()
	var head archiveHead
	r, err := snapshot.NewArchiveReader(bytes.NewReader(archive), &head)
	if err != nil {
		t.Fatal(err)
	}
	change(&head)
	var b bytes.Buffer
	w, err := snapshot.NewArchiveWriter(&b, head)
	if err != nil {
		t.Fatal(err)
	}
	for {
		part, err := r.Next()
		if err == io.EOF {
			break
		}
		if err == nil && part == imagePart {
			err = r.Stream(func(r io.Reader) error {
				return w.Stream(part, func(w io.Writer) error { _, err := io.Copy(w, r); return err })
			})
		} else if err == nil {
			path := t.TempDir() + "/f"
			if err = r.File(context.Background(), path, 1<<50); err == nil {
				var f *os.File
				if f, err = os.Open(path); err == nil {
					err = errors.Join(w.File(context.Background(), part, f), f.Close())
				}
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// A disk that is full in the midst of an import has nothing of it afterwards.
func TestImportOnFullDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	inBubble(t, func(t *testing.T, h *house) {
		ctx := context.Background()
		archive := h.exported(true)
		other := emptyHouse(t)
		if err := os.Mkdir(other.path("root", "snapshots"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Mount("tmpfs", other.path("root", "snapshots"), "tmpfs", 0, "size=64k"); err != nil {
			t.Skip(err)
		}
		defer syscall.Unmount(other.path("root", "snapshots"), syscall.MNT_DETACH)
		other.open()
		if _, err := other.SnapshotImport(ctx, "", true, bytes.NewReader(archive)); !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("%v", err)
		}
		other.noSnapshot()
		if err := syscall.Mount("", other.path("root", "snapshots"), "", syscall.MS_REMOUNT, "size=64m"); err != nil {
			t.Fatal(err)
		}
		if _, err := other.SnapshotImport(ctx, "", true, bytes.NewReader(archive)); err != nil {
			t.Error(err)
		}
		if err := other.SnapshotRemove(ctx, "kept"); err != nil {
			t.Error(err)
		}
		other.finish()
	})
}
