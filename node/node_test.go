package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	osexec "os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"

	"github.com/cradlevm/cradle/dockerapi"
	"github.com/cradlevm/cradle/guestos"
	"github.com/cradlevm/cradle/image"
	"github.com/cradlevm/cradle/node/logfile"
	"github.com/cradlevm/cradle/sandbox/sandboxtest"
)

// images is an image store of one image, "img", and its holds.
type images struct {
	image.Store // what no test needs

	mu    sync.Mutex
	holds map[string]bool // owner → whether it has only borrowed
	fail  error           // of Hold
	stuck error           // of Release
	gone  bool
}

const imageID = "sha256:1111111111111111111111111111111111111111111111111111111111111111"

func (s *images) Get(ref string) (image.Image, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gone || (ref != "img" && ref != imageID && ref != "111111111111") {
		return image.Image{}, fmt.Errorf("%w: %s", image.ErrNotFound, ref)
	}
	i := image.Image{ID: imageID, RepoTags: []string{"img:latest"}, Layers: []image.Layer{{DiffID: imageID, Path: "/dev/null"}}}
	i.Config.OS, i.Config.Architecture = "linux", "amd64"
	return i, nil
}

func (s *images) Plain(_ context.Context, img image.Image) (image.Image, error) { return img, nil }

func (s *images) List() ([]image.Image, error) { i, err := s.Get("img"); return []image.Image{i}, err }

func (s *images) Hold(_, owner string) error { return s.keep(owner, false) }

func (s *images) Borrow(_, owner string) error { return s.keep(owner, true) }

func (s *images) keep(owner string, borrowed bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail == nil {
		s.holds[owner] = borrowed
	}
	return s.fail
}

// reopen is what a new daemon finds: nothing that was borrowed.
func (s *images) reopen() {
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.DeleteFunc(s.holds, func(_ string, borrowed bool) bool { return borrowed })
}

func (s *images) Settle() error { return nil }

// Remove deletes the image if force is given, or nobody holds it.
func (s *images) Remove(ref string, force bool) (untagged, deleted []string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.holds) > 0 && !force {
		return nil, nil, image.ErrInUse
	}
	s.gone = true
	return []string{ref}, []string{imageID}, nil
}

func (s *images) Release(owner string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stuck == nil {
		delete(s.holds, owner)
	}
	return s.stuck
}

// failRelease makes every Release fail; nil ends that.
func (s *images) failRelease(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stuck = err
}

func (s *images) held() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.holds)
}

// house is what outlives a daemon: its directories, its images, its machines.
type house struct {
	t      *testing.T
	dir    string
	driver *sandboxtest.Driver
	images *images
	log    *syncBuffer
	*Node  // nil while no daemon runs
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// templates makes the scratch template once for all tests.
var templates = sync.OnceValues(func() (string, error) { //nolint:gochecknoglobals // it costs 30 ms
	dir, err := os.MkdirTemp("", "cradle-node-test-")
	return dir, err
})

func TestMain(m *testing.M) {
	sandboxtest.Alone()
	code := m.Run()
	if dir, err := templates(); err == nil {
		os.RemoveAll(dir)
	}
	os.Exit(code)
}

// newHouse makes a house with a daemon. When the test ends nothing may be left in it.
func newHouse(t *testing.T) *house {
	t.Helper()
	h := emptyHouse(t)
	h.open()
	t.Cleanup(func() { h.finish() })
	return h
}

func emptyHouse(t *testing.T) *house {
	t.Helper()
	if _, err := osexec.LookPath("mkfs.ext4"); err != nil {
		t.Skip(err)
	}
	h := &house{t: t, dir: t.TempDir(), driver: sandboxtest.New(), images: &images{holds: map[string]bool{}}, log: &syncBuffer{}}
	scratch, err := templates()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(h.path("root"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(scratch, h.path("root", "scratch")); err != nil {
		t.Fatal(err)
	}
	return h
}

func (h *house) path(elem ...string) string {
	return filepath.Join(append([]string{h.dir}, elem...)...)
}

func (h *house) options() Options {
	return Options{
		Root: h.path("root"), Run: h.path("run"), Version: "test", Driver: h.driver, Images: h.images,
		Guest: guestos.Guest{Kernel: "/dev/null", Release: "test"}, Log: slog.New(slog.NewTextHandler(h.log, nil)),
	}
}

// open starts a daemon.
func (h *house) open() {
	h.t.Helper()
	h.images.reopen()
	n, err := Open(context.Background(), h.options())
	if err != nil {
		h.t.Fatal(err)
	}
	h.Node = n
}

// stop ends the daemon as SIGTERM does.
func (h *house) stop() {
	h.t.Helper()
	if err := h.Close(); err != nil {
		h.t.Fatal(err)
	}
	h.Node = nil
}

// restart is stop and open.
func (h *house) restart() {
	h.t.Helper()
	h.stop()
	h.open()
}

// finish empties the house and looks for what is left.
func (h *house) finish() {
	h.t.Helper()
	if h.t.Failed() {
		h.t.Logf("log:\n%s", h.log)
	}
	if h.Node == nil {
		return
	}
	if err := h.Reset(context.Background()); err != nil {
		h.t.Errorf("reset: %v", err)
	}
	h.empty()
	h.stop()
}

// empty fails the test when anything of a container is left.
func (h *house) empty() {
	h.t.Helper()
	for _, dir := range []string{h.path("root", "containers"), h.path("run", "s")} {
		entries, err := os.ReadDir(dir)
		if err != nil || len(entries) > 0 {
			h.t.Errorf("left in %s: %v, %v", dir, entries, err)
		}
	}
	h.noMachine()
	if n := h.images.held(); n != 0 {
		h.t.Errorf("%d holds are left", n)
	}
	records, err := h.store.all()
	if err != nil || len(records) > 0 {
		h.t.Errorf("records are left: %v, %v", records, err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.containers)+len(h.names)+len(h.uids)+len(h.execs) > 0 {
		h.t.Errorf("left: containers %v, names %v, uids %v, execs %v", h.containers, h.names, h.uids, h.execs)
	}
}

// noMachine fails the test when a machine, its user id or its directory is left.
func (h *house) noMachine() {
	h.t.Helper()
	if m := h.driver.Running(); len(m) > 0 {
		h.t.Errorf("%d machines are left", len(m))
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.uids) > 0 {
		h.t.Errorf("user ids are left: %v", h.uids)
	}
}

// create makes a container that runs a command line; f, if any, changes the request.
func (h *house) create(name, command string, f ...func(*container.CreateRequest)) string {
	h.t.Helper()
	id, err := h.tryCreate(name, command, f...)
	if err != nil {
		h.t.Fatal(err)
	}
	return id
}

func (h *house) tryCreate(name, command string, f ...func(*container.CreateRequest)) (string, error) {
	r := container.CreateRequest{Config: &container.Config{Image: "img", Cmd: strings.Fields(command)}, HostConfig: &container.HostConfig{}}
	for _, f := range f {
		f(&r)
	}
	resp, err := h.ContainerCreate(context.Background(), name, nil, r)
	return resp.ID, err
}

// start is for a start that has to succeed.
func (h *house) start(name string) {
	h.t.Helper()
	if err := h.ContainerStart(context.Background(), name); err != nil {
		h.t.Fatalf("start %s: %v", name, err)
	}
}

// run is create and start.
func (h *house) run(name, command string, f ...func(*container.CreateRequest)) string {
	h.t.Helper()
	id := h.create(name, command, f...)
	h.start(id)
	return id
}

// wait returns a container's exit code once the condition holds.
func (h *house) wait(name string, condition container.WaitCondition) int {
	h.t.Helper()
	return h.result(h.waiting(name, condition))
}

func (h *house) waiting(name string, condition container.WaitCondition) <-chan dockerapi.WaitResult {
	h.t.Helper()
	ch, err := h.ContainerWait(context.Background(), name, condition)
	if err != nil {
		h.t.Fatalf("wait for %s: %v", name, err)
	}
	return ch
}

func (h *house) result(ch <-chan dockerapi.WaitResult) int {
	h.t.Helper()
	select {
	case r := <-ch:
		if r.Err != nil {
			h.t.Fatalf("wait: %v", r.Err)
		}
		return r.StatusCode
	case <-time.After(time.Hour): // of a bubble's time, or the test's own limit
		h.t.Fatal("the wait has no end")
		return -1
	}
}

// state inspects a container.
func (h *house) state(name string) *container.State {
	h.t.Helper()
	r, err := h.ContainerInspect(context.Background(), name, false)
	if err != nil {
		h.t.Fatalf("inspect %s: %v", name, err)
	}
	return r.State
}

func (h *house) wantState(name string, status container.ContainerState, code int) {
	h.t.Helper()
	if s := h.state(name); s.Status != status || s.ExitCode != code {
		h.t.Errorf("%s is %s with exit code %d (%s), want %s with %d", name, s.Status, s.ExitCode, s.Error, status, code)
	}
}

// torn waits until nothing of the container's VM is left.
func (h *house) torn(name string) {
	h.t.Helper()
	c, err := h.find(name)
	if err != nil {
		return
	}
	c.mu.Lock()
	r := c.run
	c.mu.Unlock()
	if r != nil {
		<-r.torn
	}
}

// output is what the log holds.
func (h *house) output(name string) string {
	h.t.Helper()
	c, err := h.find(name)
	if err != nil {
		h.t.Fatal(err)
	}
	log, err := c.openLog()
	if err != nil {
		h.t.Fatal(err)
	}
	var out strings.Builder
	err = log.Read(context.Background(), logfile.ReadOptions{Stdout: true, Stderr: true, Tail: -1}, func(r logfile.Record) error {
		out.Write(r.Data)
		return nil
	})
	if err != nil {
		h.t.Fatal(err)
	}
	return out.String()
}

// numbers is "1\n2\n…n\n".
func numbers(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintln(&b, i+1)
	}
	return b.String()
}

func autoRemove(r *container.CreateRequest) { r.HostConfig.AutoRemove = true }

func restartPolicy(name container.RestartPolicyMode, max int) func(*container.CreateRequest) {
	return func(r *container.CreateRequest) {
		r.HostConfig.RestartPolicy = container.RestartPolicy{Name: name, MaximumRetryCount: max}
	}
}

func wantConflict(t *testing.T, err error) {
	t.Helper()
	if !cerrdefs.IsConflict(err) {
		t.Errorf("got %v, want a conflict", err)
	}
}

func wantNotFound(t *testing.T, err error) {
	t.Helper()
	if !cerrdefs.IsNotFound(err) {
		t.Errorf("got %v, want not found", err)
	}
}

func wantNotModified(t *testing.T, err error) {
	t.Helper()
	if !errors.Is(err, dockerapi.ErrNotModified) {
		t.Errorf("got %v, want not modified", err)
	}
}

// client is a client's ends of an attach or exec.
type client struct {
	in       *io.PipeWriter
	out, err *syncBuffer
	streams  dockerapi.Streams
}

func newClient() *client {
	r, w := io.Pipe()
	c := &client{in: w, out: &syncBuffer{}, err: &syncBuffer{}}
	c.streams = dockerapi.Streams{Stdin: r, Stdout: c.out, Stderr: c.err}
	return c
}

// The virtual machines of two daemons are not of one user, and of nobody else's.
func TestUsersOfDaemons(t *testing.T) {
	seen := map[uint32]bool{}
	for _, root := range []string{"/var/lib/cradle", "/tmp/one/root", "/tmp/other/root"} {
		uid := firstUID(root)
		if seen[uid] || uid < 1_900_000_000 || uid+100_000 > 2_000_000_000 || uid != firstUID(root) {
			t.Errorf("%s: user ids begin at %d", root, uid)
		}
		seen[uid] = true
	}
}
