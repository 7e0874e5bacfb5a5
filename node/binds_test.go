package node

import (
	"os"
	"strings"
	"syscall"
	"testing"

	cerrdefs "github.com/containerd/errdefs"

	"github.com/cradlevm/cradle/node/runspec"
)

// A file of the host's is given to a container as it is when the container starts; what is none is refused when the container is made.
func TestFileBinds(t *testing.T) {
	h := newHouse(t)
	file, large, pipe := h.path("file"), h.path("large"), h.path("pipe")
	for path, text := range map[string]string{file: "one\n", large: strings.Repeat("x", maxBound+1)} {
		if err := os.WriteFile(path, []byte(text), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	for source, want := range map[string]string{
		h.path("none"): "bind source path does not exist", h.dir: "it is not a file", pipe: "it is not a file", large: "at most 1048576 bytes",
	} {
		_, err := h.tryCreate("", "sleep", withVolumes(source+":/x:ro"))
		if err == nil || !strings.Contains(err.Error(), want) || !cerrdefs.IsNotImplemented(err) && !cerrdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v, want %s", source, err, want)
		}
	}
	id := h.create("box", "sleep", withVolumes(file+":/etc/given:ro"))
	r, err := h.ContainerInspect(t.Context(), id, false)
	if err != nil || len(r.Mounts) != 1 || r.Mounts[0].Source != file || r.Mounts[0].RW {
		t.Errorf("mounts %+v, %v", r.Mounts, err)
	}
	if err := os.WriteFile(file, []byte("two\n"), 0o640); err != nil {
		t.Fatal(err)
	}
	h.start(id)
	c, err := h.find(id)
	if err != nil {
		t.Fatal(err)
	}
	rec := c.snapshot()
	files, err := rec.boundFiles()
	if err != nil || len(files) != 1 || files[0].Path != "/etc/given" || string(files[0].Data) != "two\n" || files[0].Mode != 0o640 ||
		files[0].UID != uint32(os.Getuid()) || !files[0].ReadOnly {
		t.Errorf("%+v, %v", files, err)
	}
	rec.Config.Labels = map[string]string{warmLabel: "true"}
	if why := h.coldReason(rec); !strings.Contains(why, file) {
		t.Errorf("a warm image may have the file: %q", why)
	}
	// Two that are small enough alone are not so together.
	if err := os.Truncate(large, maxBound/2+1); err != nil {
		t.Fatal(err)
	}
	if _, err := h.tryCreate("", "sleep", withVolumes(large+":/x:ro", large+":/y:ro")); !cerrdefs.IsNotImplemented(err) {
		t.Errorf("two: %v", err)
	}
	if _, err := readBound(runspec.FileBind{Source: large, Path: "/x"}, maxBound); err != nil {
		t.Errorf("one: %v", err)
	}
}
