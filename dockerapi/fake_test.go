package dockerapi

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/jsonstream"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/api/types/system"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// fake is a Backend in memory. Its containers run the programs of program, its images are names.
type fake struct {
	mu         sync.Mutex
	images     map[string]bool
	containers map[string]*fakeContainer
	execs      map[string]*fakeExec
	calls      []string // what was asked, for tests of how requests are read
	nextID     int
}

type fakeContainer struct {
	id, name string
	r        container.CreateRequest
	p        *fakeProc
	started  atomic.Bool
	removed  chan struct{}
}

type fakeExec struct {
	id, parent string
	r          container.ExecCreateRequest
	p          *fakeProc
}

func newFake() *fake {
	return &fake{images: map[string]bool{"alpine:latest": true}, containers: map[string]*fakeContainer{}, execs: map[string]*fakeExec{}}
}

func (f *fake) note(format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, fmt.Sprintf(format, args...))
}

func (f *fake) called() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.calls)
}

func (f *fake) newID() string {
	f.nextID++
	return fmt.Sprintf("%064x", f.nextID+0xabc000)
}

// fakeProc is a process: what it wrote, and ways to reach it.
type fakeProc struct {
	mu      sync.Mutex
	cond    *sync.Cond
	chunks  []fakeChunk
	inR     *io.PipeReader
	inW     *io.PipeWriter
	signals chan string
	sizes   chan [2]uint
	ended   bool
	code    int
	done    chan struct{}
}

type fakeChunk struct {
	stderr bool
	text   string
}

func newFakeProc() *fakeProc {
	p := &fakeProc{signals: make(chan string, 4), sizes: make(chan [2]uint, 16), done: make(chan struct{})}
	p.cond = sync.NewCond(&p.mu)
	p.inR, p.inW = io.Pipe()
	return p
}

func (p *fakeProc) print(stderr bool, format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.chunks = append(p.chunks, fakeChunk{stderr, fmt.Sprintf(format, args...)})
	p.cond.Broadcast()
}

func (p *fakeProc) finish(code int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.ended {
		p.ended, p.code = true, code
		close(p.done)
		_ = p.inR.Close()
		p.cond.Broadcast()
	}
}

func (p *fakeProc) isEnded() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// program is what a command does.
func (p *fakeProc) program(cmd []string) {
	switch cmd[0] {
	case "echo":
		p.print(false, "%s\n", strings.Join(cmd[1:], " "))
	case "both":
		p.print(false, "out\n")
		p.print(true, "err\n")
	case "cat":
		buf := make([]byte, 64<<10)
		for {
			n, err := p.inR.Read(buf)
			if n > 0 {
				p.print(false, "%s", buf[:n])
			}
			if err != nil {
				break
			}
		}
	case "exit":
		code, _ := strconv.Atoi(cmd[1])
		p.finish(code)
	case "size": // prints each size of its terminal until a signal
		for {
			select {
			case s := <-p.sizes:
				p.print(false, "size %dx%d\r\n", s[0], s[1])
			case s := <-p.signals:
				p.print(false, "signal %s\r\n", s)
				p.finish(42)
				return
			}
		}
	case "sleep":
		s := <-p.signals
		p.print(false, "signal %s\n", s)
		p.finish(137)
	case "flood":
		for !p.isEnded() {
			p.print(false, "%s\n", strings.Repeat("x", 4096))
			time.Sleep(time.Millisecond)
		}
	}
	p.finish(0)
}

// follow writes what the process wrote from a position on, until it has ended or ctx has.
func (p *fakeProc) follow(ctx context.Context, from int, wait bool, stdout, stderr io.Writer) error {
	defer context.AfterFunc(ctx, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.cond.Broadcast()
	})()
	for {
		p.mu.Lock()
		for wait && from >= len(p.chunks) && !p.ended && ctx.Err() == nil {
			p.cond.Wait()
		}
		chunks := p.chunks[from:]
		end := ctx.Err() != nil || len(chunks) == 0
		p.mu.Unlock()
		if end {
			return ctx.Err()
		}
		for _, c := range chunks {
			w := stdout
			if c.stderr {
				w = stderr
			}
			if _, err := io.WriteString(w, c.text); err != nil {
				return err
			}
		}
		from += len(chunks)
	}
}

func (p *fakeProc) pump(ctx context.Context, from int, s Streams) error {
	if s.Stdin != nil {
		go func() {
			_, _ = io.Copy(p.inW, s.Stdin)
			_ = p.inW.Close()
		}()
	}
	return p.follow(ctx, from, true, s.Stdout, s.Stderr)
}

// System.

func (f *fake) Info(context.Context) (system.Info, error) {
	return system.Info{
		ID: "fake", Name: "fake", ServerVersion: "1.2.3", OSType: "linux", Architecture: "x86_64", Driver: "erofs",
		Labels: []string{}, NCPU: 1,
	}, nil
}

func (f *fake) Version(context.Context) (system.VersionResponse, error) {
	return system.VersionResponse{Version: "1.2.3", Os: "linux", Arch: "amd64"}, nil
}

func (f *fake) Events(ctx context.Context, since, until time.Time, filters Filters, send func(events.Message) error) error {
	f.note("events %d %d %v", since.UnixNano(), until.UnixNano(), filters)
	err := send(events.Message{Type: "container", Action: "start", Scope: "local", Time: 7, TimeNano: 7e9,
		Actor: events.Actor{ID: "abc", Attributes: map[string]string{"image": "alpine", "name": "x"}}})
	if err != nil || !until.IsZero() {
		return err
	}
	<-ctx.Done()
	f.note("events ended")
	return ctx.Err()
}

func (f *fake) DiskUsage(context.Context) (system.DiskUsage, error) {
	return system.DiskUsage{
		ImageUsage:     &image.DiskUsage{TotalCount: 1, TotalSize: 10, Items: []image.Summary{f.image("alpine:latest")}},
		ContainerUsage: &container.DiskUsage{TotalCount: 1, TotalSize: 5, Items: []container.Summary{{ID: "c", SizeRw: 5}}},
	}, nil
}

// Containers.

func (f *fake) find(name string) (*fakeContainer, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.containers {
		if c.id == name || c.name == name || (len(name) >= 6 && strings.HasPrefix(c.id, name)) {
			return c, nil
		}
	}
	return nil, fmt.Errorf("No such container: %s: %w", name, errdefs.ErrNotFound) //nolint:staticcheck // docker's words
}

func (f *fake) ContainerCreate(_ context.Context, name string, platform *ocispec.Platform, r container.CreateRequest) (container.CreateResponse, error) {
	f.note("create %q %v", name, platform)
	if r.HostConfig == nil || r.NetworkingConfig == nil {
		panic("nil config")
	}
	ref := r.Image
	if !strings.Contains(ref, ":") {
		ref += ":latest"
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.images[ref] {
		return container.CreateResponse{}, fmt.Errorf("No such image: %s: %w", ref, errdefs.ErrNotFound) //nolint:staticcheck // docker's words
	}
	c := &fakeContainer{id: f.newID(), name: name, r: r, p: newFakeProc(), removed: make(chan struct{})}
	if c.name == "" {
		c.name = "fake" + c.id[len(c.id)-4:]
	}
	for _, other := range f.containers {
		if other.name == c.name {
			return container.CreateResponse{}, errdefs.ErrConflict.WithMessage("Conflict. The container name " + c.name + " is already in use")
		}
	}
	f.containers[c.id] = c
	return container.CreateResponse{ID: c.id}, nil
}

func (f *fake) ContainerStart(_ context.Context, name string) error {
	c, err := f.find(name)
	if err != nil {
		return err
	}
	if len(c.r.Cmd) > 0 && c.r.Cmd[0] == "missing" {
		c.p.finish(127)
		if c.r.HostConfig.AutoRemove {
			_ = f.ContainerRemove(context.Background(), c.id, true, true)
		}
		return fmt.Errorf("exec: \"missing\": executable file not found in $PATH: %w", errdefs.ErrInvalidArgument)
	}
	if c.started.Swap(true) && !c.p.isEnded() {
		return ErrNotModified
	}
	go func() {
		c.p.program(c.r.Cmd)
		if c.r.HostConfig.AutoRemove {
			_ = f.ContainerRemove(context.Background(), c.id, true, true)
		}
	}()
	return nil
}

func (f *fake) ContainerStop(ctx context.Context, name, signal string, timeout *int) error {
	c, err := f.find(name)
	if err != nil {
		return err
	}
	if timeout != nil {
		f.note("stop %q %d", signal, *timeout)
	}
	if !c.started.Load() || c.p.isEnded() {
		return ErrNotModified
	}
	c.p.finish(143)
	return nil
}

func (f *fake) ContainerRestart(ctx context.Context, name, signal string, timeout *int) error {
	_, err := f.find(name)
	return err
}

func (f *fake) ContainerKill(ctx context.Context, name, signal string) error {
	f.note("kill %s", signal)
	c, err := f.find(name)
	if err != nil {
		return err
	}
	if !c.started.Load() || c.p.isEnded() {
		return errdefs.ErrConflict.WithMessage("container " + name + " is not running")
	}
	if strings.HasSuffix(signal, "WINCH") || strings.HasSuffix(signal, "URG") {
		return nil // ignored by default, and the command line passes them on
	}
	select {
	case c.p.signals <- signal:
	default:
	}
	return nil
}

func (f *fake) ContainerPause(_ context.Context, name string) error {
	_, err := f.find(name)
	return err
}

func (f *fake) ContainerUnpause(_ context.Context, name string) error {
	_, err := f.find(name)
	return err
}

func (f *fake) ContainerRemove(_ context.Context, name string, force, volumes bool) error {
	c, err := f.find(name)
	if err != nil {
		return err
	}
	if c.started.Load() && !c.p.isEnded() && !force {
		return errdefs.ErrConflict.WithMessage("cannot remove container " + name + ": container is running")
	}
	c.p.finish(137)
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.containers[c.id] != nil {
		delete(f.containers, c.id)
		close(c.removed)
	}
	return nil
}

func (f *fake) ContainerRename(_ context.Context, name, to string) error {
	c, err := f.find(name)
	if err == nil {
		c.name = to
	}
	return err
}

func (f *fake) ContainerResize(_ context.Context, name string, height, width uint) error {
	c, err := f.find(name)
	if err == nil {
		c.p.sizes <- [2]uint{height, width}
	}
	return err
}

func (f *fake) ContainerList(_ context.Context, all bool, limit int, size bool, filters Filters) ([]container.Summary, error) {
	f.note("list %v %d %v %v", all, limit, size, filters)
	f.mu.Lock()
	defer f.mu.Unlock()
	var items []container.Summary
	for _, id := range slices.Sorted(maps.Keys(f.containers)) {
		c := f.containers[id]
		state := container.StateExited
		if c.started.Load() && !c.p.isEnded() {
			state = container.StateRunning
		}
		if all || state == container.StateRunning {
			items = append(items, container.Summary{ID: c.id, Names: []string{"/" + c.name}, Image: c.r.Image, State: state,
				Command: strings.Join(c.r.Cmd, " "), Ports: []container.PortSummary{}, Labels: map[string]string{},
				Mounts: []container.MountPoint{}, NetworkSettings: &container.NetworkSettingsSummary{}})
		}
	}
	return items, nil
}

func (f *fake) ContainerInspect(_ context.Context, name string, size bool) (container.InspectResponse, error) {
	c, err := f.find(name)
	if err != nil {
		return container.InspectResponse{}, err
	}
	state := &container.State{Status: container.StateCreated}
	if c.started.Load() {
		state = &container.State{Status: container.StateRunning, Running: true, Pid: 1}
	}
	if c.p.isEnded() {
		state = &container.State{Status: container.StateExited, ExitCode: c.p.code}
	}
	return container.InspectResponse{
		ID: c.id, Name: "/" + c.name, State: state, Config: c.r.Config, HostConfig: c.r.HostConfig, Image: "sha256:00",
		Path: c.r.Cmd[0], Args: c.r.Cmd[1:], Driver: "erofs", Platform: "linux",
		NetworkSettings: &container.NetworkSettings{Networks: map[string]*network.EndpointSettings{
			"bridge": {EndpointID: "ep", IPAddress: addr("10.1.2.3"), Gateway: addr("10.1.2.1"), IPPrefixLen: 24},
		}},
	}, nil
}

func (f *fake) ContainerTop(_ context.Context, name, psArgs string) (container.TopResponse, error) {
	_, err := f.find(name)
	return container.TopResponse{Titles: []string{"PID", "CMD"}, Processes: [][]string{{"1", psArgs}}}, err
}

func (f *fake) ContainerPrune(_ context.Context, filters Filters) (container.PruneReport, error) {
	f.note("prune %v", filters)
	return container.PruneReport{}, nil
}

func (f *fake) ContainerWait(ctx context.Context, name string, condition container.WaitCondition) (<-chan WaitResult, error) {
	c, err := f.find(name)
	if err != nil {
		return nil, err
	}
	result := make(chan WaitResult, 1)
	go func() {
		until := c.p.done
		if condition == container.WaitConditionRemoved {
			until = c.removed
		}
		select {
		case <-until:
			result <- WaitResult{StatusCode: c.p.code}
		case <-ctx.Done():
			f.note("wait cancelled")
		}
	}()
	return result, nil
}

func (f *fake) ContainerAttach(ctx context.Context, name string, o AttachOptions) (func(Streams) error, bool, error) {
	c, err := f.find(name)
	if err != nil {
		return nil, false, err
	}
	c.p.mu.Lock()
	from := len(c.p.chunks)
	c.p.mu.Unlock()
	if o.Logs {
		from = 0
	}
	return func(s Streams) error {
		err := c.p.pump(ctx, from, s)
		f.note("attach ended %v", err)
		return err
	}, c.r.Tty, nil
}

func (f *fake) ContainerLogs(ctx context.Context, name string, o LogsOptions) (func(stdout, stderr io.Writer) error, bool, error) {
	f.note("logs %+v", o)
	c, err := f.find(name)
	if err != nil {
		return nil, false, err
	}
	return func(stdout, stderr io.Writer) error {
		err := c.p.follow(ctx, 0, o.Follow, stdout, stderr)
		f.note("logs ended %v", err)
		return err
	}, c.r.Tty, nil
}

func (f *fake) ContainerStats(ctx context.Context, name string, stream, oneShot bool, send func(container.StatsResponse) error) error {
	c, err := f.find(name)
	if err != nil {
		return err
	}
	f.note("stats %v %v", stream, oneShot)
	for {
		if err := send(container.StatsResponse{ID: c.id, Name: "/" + c.name, OSType: "linux"}); err != nil || !stream {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// Execs.

func (f *fake) ExecCreate(_ context.Context, name string, r container.ExecCreateRequest) (string, error) {
	c, err := f.find(name)
	if err != nil {
		return "", err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	e := &fakeExec{id: f.newID(), parent: c.id, r: r, p: newFakeProc()}
	f.execs[e.id] = e
	return e.id, nil
}

func (f *fake) exec(id string) (*fakeExec, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if e := f.execs[id]; e != nil {
		return e, nil
	}
	return nil, fmt.Errorf("No such exec instance: %s: %w", id, errdefs.ErrNotFound) //nolint:staticcheck // docker's words
}

func (f *fake) ExecStart(ctx context.Context, id string, r container.ExecStartRequest, ready func() (Streams, error)) error {
	e, err := f.exec(id)
	if err != nil {
		return err
	}
	switch e.r.Cmd[0] {
	case "missing":
		e.p.finish(127)
		return fmt.Errorf("exec failed: \"missing\": executable file not found in $PATH: %w", errdefs.ErrInvalidArgument)
	case "conflict":
		return errdefs.ErrConflict.WithMessage("container is paused")
	}
	if ready == nil {
		go e.p.program(e.r.Cmd)
		return nil
	}
	s, err := ready()
	if err != nil {
		return err
	}
	go e.p.program(e.r.Cmd)
	err = e.p.pump(ctx, 0, s)
	f.note("exec ended %v", err)
	return err
}

func (f *fake) ExecInspect(_ context.Context, id string) (container.ExecInspectResponse, error) {
	e, err := f.exec(id)
	if err != nil {
		return container.ExecInspectResponse{}, err
	}
	r := container.ExecInspectResponse{ID: e.id, ContainerID: e.parent, Running: !e.p.isEnded(), OpenStdin: e.r.AttachStdin,
		OpenStdout: e.r.AttachStdout, OpenStderr: e.r.AttachStderr, ProcessConfig: &container.ExecProcessConfig{}}
	if !r.Running {
		r.ExitCode = &e.p.code
	}
	return r, nil
}

func (f *fake) ExecResize(_ context.Context, id string, height, width uint) error {
	e, err := f.exec(id)
	if err == nil {
		e.p.sizes <- [2]uint{height, width}
	}
	return err
}

// Images.

func (f *fake) image(ref string) image.Summary {
	return image.Summary{ID: "sha256:" + strings.Repeat("0", 64), RepoTags: []string{ref}, RepoDigests: []string{},
		Labels: map[string]string{}, Size: 10, SharedSize: -1, Containers: -1}
}

func (f *fake) hasImage(ref string) error {
	if !strings.Contains(ref, ":") {
		ref += ":latest"
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.images[ref] {
		return nil
	}
	return fmt.Errorf("No such image: %s: %w", ref, errdefs.ErrNotFound) //nolint:staticcheck // docker's words
}

func (f *fake) ImagePull(_ context.Context, ref string, platform *ocispec.Platform, auth *registry.AuthConfig, progress Progress) error {
	f.note("pull %s %v %+v", ref, platform, auth)
	if strings.HasPrefix(ref, "absent") {
		return errdefs.ErrNotFound.WithMessage("manifest for " + ref + " not found")
	}
	progress(jsonstream.Message{Status: "Pulling from " + ref})
	if strings.HasPrefix(ref, "broken") {
		return fmt.Errorf("layer %s is broken", ref)
	}
	f.mu.Lock()
	f.images[ref] = true
	f.mu.Unlock()
	progress(jsonstream.Message{Status: "Status: Downloaded newer image for " + ref})
	return nil
}

func (f *fake) ImageImport(_ context.Context, r io.Reader, ref, message string, changes []string, platform *ocispec.Platform, progress Progress) error {
	body, err := io.ReadAll(r)
	f.note("import %s %q %q %q", ref, message, changes, body)
	progress(jsonstream.Message{Status: "sha256:00"})
	return err
}

func (f *fake) ImageLoad(_ context.Context, r io.Reader, quiet bool, progress Progress) error {
	body, err := io.ReadAll(r)
	f.note("load %v %q", quiet, body)
	progress(jsonstream.Message{Stream: "Loaded image: alpine:latest\n"})
	return err
}

func (f *fake) ImageSave(_ context.Context, refs []string, w io.Writer) error {
	for _, ref := range refs {
		if err := f.hasImage(ref); err != nil {
			return err
		}
		if _, err := io.WriteString(w, "tar of "+ref+"\n"); err != nil {
			return err
		}
	}
	return nil
}

func (f *fake) ImageList(_ context.Context, all bool, filters Filters) ([]image.Summary, error) {
	f.note("images %v %v", all, filters)
	f.mu.Lock()
	defer f.mu.Unlock()
	var items []image.Summary
	for _, ref := range slices.Sorted(maps.Keys(f.images)) {
		items = append(items, f.image(ref))
	}
	return items, nil
}

func (f *fake) ImageInspect(_ context.Context, ref string) (image.InspectResponse, error) {
	if err := f.hasImage(ref); err != nil {
		return image.InspectResponse{}, err
	}
	return image.InspectResponse{ID: f.image(ref).ID, RepoTags: []string{ref}, RepoDigests: []string{}, Os: "linux",
		Architecture: "amd64", Size: 10, Config: &dockerspec.DockerOCIImageConfig{}, RootFS: image.RootFS{Type: "layers"}}, nil
}

func (f *fake) ImageHistory(_ context.Context, ref string) ([]image.HistoryResponseItem, error) {
	return []image.HistoryResponseItem{{ID: "<missing>", CreatedBy: "ADD", Tags: []string{ref}}}, f.hasImage(ref)
}

func (f *fake) ImageRemove(_ context.Context, ref string, force, noPrune bool) ([]image.DeleteResponse, error) {
	f.note("rmi %s %v %v", ref, force, noPrune)
	return []image.DeleteResponse{{Untagged: ref}}, f.hasImage(ref)
}

func (f *fake) ImageTag(_ context.Context, ref, target string) error {
	f.note("tag %s %s", ref, target)
	return f.hasImage(ref)
}

func (f *fake) ImagePrune(_ context.Context, filters Filters) (image.PruneReport, error) {
	f.note("image prune %v", filters)
	return image.PruneReport{}, nil
}
