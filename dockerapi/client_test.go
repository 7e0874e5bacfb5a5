package dockerapi

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/client"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// newClient is the moby client, talking to a fake.
func newClient(t *testing.T) (*client.Client, *fake) {
	t.Helper()
	t.Parallel()
	f := newFake()
	c, err := client.New(client.WithHost("unix://" + serve(t, f)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c, f
}

// ok fails the test on an error: ok(t)(c.X(...)).
func ok[T any](t *testing.T) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func isClass[T any](t *testing.T, is func(error) bool) func(T, error) {
	return func(_ T, err error) {
		t.Helper()
		if !is(err) {
			t.Errorf("got %v", err)
		}
	}
}

func TestClientSystem(t *testing.T) {
	c, f := newClient(t)
	ctx := t.Context()
	p := ok[client.PingResult](t)(c.Ping(ctx, client.PingOptions{NegotiateAPIVersion: true}))
	if p.APIVersion != MaxAPIVersion || p.OSType != "linux" || p.SwarmStatus.NodeState != "inactive" || c.ClientVersion() != MaxAPIVersion {
		t.Errorf("ping %+v, client's version %s", p, c.ClientVersion())
	}
	if v := ok[client.ServerVersionResult](t)(c.ServerVersion(ctx, client.ServerVersionOptions{})); v.APIVersion != MaxAPIVersion || v.MinAPIVersion != MinAPIVersion {
		t.Errorf("version %+v", v)
	}
	if i := ok[client.SystemInfoResult](t)(c.Info(ctx, client.InfoOptions{})); i.Info.Swarm.LocalNodeState != "inactive" || i.Info.ServerVersion != "1.2.3" {
		t.Errorf("info %+v", i.Info)
	}
	if u := ok[client.DiskUsageResult](t)(c.DiskUsage(ctx, client.DiskUsageOptions{Images: true, Verbose: true})); u.Images.TotalSize != 10 || len(u.Images.Items) != 1 || u.Containers.TotalCount != 0 {
		t.Errorf("disk usage %+v", u)
	}
	isClass[client.RegistryLoginResult](t, errdefs.IsNotImplemented)(c.RegistryLogin(ctx, client.RegistryLoginOptions{Username: "u"}))

	eventsCtx, cancel := context.WithCancel(ctx)
	e := c.Events(eventsCtx, client.EventsListOptions{Since: "1.5", Filters: client.Filters{}.Add("type", "container")})
	if m := <-e.Messages; m.Action != "start" || m.Actor.ID != "abc" {
		t.Errorf("event %+v", m)
	}
	f.eventually(t, "events 1500000000 "+zeroNano()+" map[type:map[container:true]]")
	cancel()
	if err := <-e.Err; !errors.Is(err, context.Canceled) {
		t.Errorf("events ended with %v", err)
	}
	f.eventually(t, "events ended")
}

func TestClientContainers(t *testing.T) {
	c, f := newClient(t)
	ctx := t.Context()
	create := client.ContainerCreateOptions{Name: "box", Config: &container.Config{Image: "alpine", Cmd: []string{"size"}},
		HostConfig: &container.HostConfig{}}
	box := ok[client.ContainerCreateResult](t)(c.ContainerCreate(ctx, create)).ID
	isClass[client.ContainerCreateResult](t, errdefs.IsConflict)(c.ContainerCreate(ctx, create))
	create.Config.Image = "nope"
	isClass[client.ContainerCreateResult](t, errdefs.IsNotFound)(c.ContainerCreate(ctx, create))

	attach := ok[client.ContainerAttachResult](t)(c.ContainerAttach(ctx, box, client.ContainerAttachOptions{Stream: true, Stdout: true, Stderr: true}))
	defer attach.Close()
	if kind, _ := attach.MediaType(); kind != "application/vnd.docker.multiplexed-stream" {
		t.Errorf("media type %q", kind)
	}
	wait := c.ContainerWait(ctx, box, client.ContainerWaitOptions{Condition: container.WaitConditionNextExit})
	ok[client.ContainerStartResult](t)(c.ContainerStart(ctx, box, client.ContainerStartOptions{}))
	ok[client.ContainerStartResult](t)(c.ContainerStart(ctx, box, client.ContainerStartOptions{})) // not modified
	ok[client.ContainerResizeResult](t)(c.ContainerResize(ctx, box, client.ContainerResizeOptions{Height: 5, Width: 6}))
	if r := ok[client.ContainerInspectResult](t)(c.ContainerInspect(ctx, "box", client.ContainerInspectOptions{})); !r.Container.State.Running || r.Container.Name != "/box" {
		t.Errorf("inspect %+v", r.Container)
	}
	list := ok[client.ContainerListResult](t)(c.ContainerList(ctx, client.ContainerListOptions{All: true, Limit: 2, Size: true, Filters: client.Filters{}.Add("name", "box")}))
	if len(list.Items) != 1 || list.Items[0].ID != box {
		t.Errorf("list %+v", list.Items)
	}
	f.eventually(t, "list true 2 true map[name:map[box:true]]")
	ok[client.ContainerPauseResult](t)(c.ContainerPause(ctx, box, client.ContainerPauseOptions{}))
	ok[client.ContainerUnpauseResult](t)(c.ContainerUnpause(ctx, box, client.ContainerUnpauseOptions{}))
	ok[client.ContainerRestartResult](t)(c.ContainerRestart(ctx, box, client.ContainerRestartOptions{}))
	ok[client.ContainerRenameResult](t)(c.ContainerRename(ctx, box, client.ContainerRenameOptions{NewName: "crate"}))
	if top := ok[client.ContainerTopResult](t)(c.ContainerTop(ctx, "crate", client.ContainerTopOptions{Arguments: []string{"aux"}})); top.Processes[0][1] != "aux" {
		t.Errorf("top %+v", top)
	}
	ok[client.ContainerKillResult](t)(c.ContainerKill(ctx, box, client.ContainerKillOptions{Signal: "HUP"}))
	select {
	case r := <-wait.Result:
		if r.StatusCode != 42 {
			t.Errorf("exit %+v", r)
		}
	case err := <-wait.Error:
		t.Fatal(err)
	case <-time.After(5 * time.Second):
		t.Fatal("the wait does not end")
	}
	var out strings.Builder
	if _, err := stdcopy.StdCopy(&out, io.Discard, attach.Reader); err != nil || out.String() != "size 5x6\r\nsignal HUP\r\n" {
		t.Errorf("attach gave %q, %v", &out, err)
	}
	out.Reset()
	logs := ok[client.ContainerLogsResult](t)(c.ContainerLogs(ctx, box, client.ContainerLogsOptions{ShowStdout: true, Tail: "3", Until: "7.25", Details: true, Timestamps: true}))
	if _, err := stdcopy.StdCopy(&out, io.Discard, logs); err != nil || out.String() != "size 5x6\r\nsignal HUP\r\n" {
		t.Errorf("logs gave %q, %v", &out, err)
	}
	five := 5
	ok[client.ContainerStopResult](t)(c.ContainerStop(ctx, box, client.ContainerStopOptions{Signal: "QUIT", Timeout: &five}))
	f.eventually(t, `stop "QUIT" 5`)
	ok[client.ContainerPruneResult](t)(c.ContainerPrune(ctx, client.ContainerPruneOptions{Filters: client.Filters{}.Add("until", "1h")}))
	f.eventually(t, "prune map[until:map[1h:true]]")
	ok[client.ContainerRemoveResult](t)(c.ContainerRemove(ctx, box, client.ContainerRemoveOptions{Force: true, RemoveVolumes: true}))
	isClass[client.ContainerInspectResult](t, errdefs.IsNotFound)(c.ContainerInspect(ctx, box, client.ContainerInspectOptions{}))
	isClass[client.ContainerStatPathResult](t, errdefs.IsNotFound)(c.ContainerStatPath(ctx, box, client.ContainerStatPathOptions{Path: "/"}))
	isClass[client.ContainerUpdateResult](t, errdefs.IsNotFound)(c.ContainerUpdate(ctx, box, client.ContainerUpdateOptions{}))
	isClass[client.ContainerCommitResult](t, errdefs.IsNotFound)(c.ContainerCommit(ctx, box, client.ContainerCommitOptions{}))
}

func TestClientExec(t *testing.T) {
	c, f := newClient(t)
	ctx := t.Context()
	box := ok[client.ContainerCreateResult](t)(c.ContainerCreate(ctx, client.ContainerCreateOptions{Config: &container.Config{Image: "alpine", Cmd: []string{"sleep"}}})).ID
	id := ok[client.ExecCreateResult](t)(c.ExecCreate(ctx, box, client.ExecCreateOptions{Cmd: []string{"cat"}, AttachStdin: true, AttachStdout: true})).ID
	attach := ok[client.ExecAttachResult](t)(c.ExecAttach(ctx, id, client.ExecAttachOptions{}))
	if _, err := io.WriteString(attach.Conn, "echoed"); err != nil {
		t.Fatal(err)
	}
	if err := attach.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	if _, err := stdcopy.StdCopy(&out, io.Discard, attach.Reader); err != nil || out.String() != "echoed" {
		t.Errorf("got %q, %v", &out, err)
	}
	attach.Close()
	if r := ok[client.ExecInspectResult](t)(c.ExecInspect(ctx, id, client.ExecInspectOptions{})); r.Running || r.ExitCode != 0 || r.ContainerID != box {
		t.Errorf("inspect %+v", r)
	}

	id = ok[client.ExecCreateResult](t)(c.ExecCreate(ctx, box, client.ExecCreateOptions{Cmd: []string{"size"}, TTY: true, AttachStdout: true})).ID
	attach = ok[client.ExecAttachResult](t)(c.ExecAttach(ctx, id, client.ExecAttachOptions{TTY: true, ConsoleSize: client.ConsoleSize{Height: 1, Width: 2}}))
	defer attach.Close()
	ok[client.ExecResizeResult](t)(c.ExecResize(ctx, id, client.ExecResizeOptions{Height: 3, Width: 4}))
	if line, err := attach.Reader.ReadString('\n'); line != "size 3x4\r\n" || err != nil {
		t.Errorf("got %q, %v", line, err)
	}
	id = ok[client.ExecCreateResult](t)(c.ExecCreate(ctx, box, client.ExecCreateOptions{Cmd: []string{"exit", "9"}})).ID
	ok[client.ExecStartResult](t)(c.ExecStart(ctx, id, client.ExecStartOptions{Detach: true}))
	e, _ := f.exec(id)
	<-e.p.done
	if r := ok[client.ExecInspectResult](t)(c.ExecInspect(ctx, id, client.ExecInspectOptions{})); r.ExitCode != 9 {
		t.Errorf("inspect %+v", r)
	}
}

func TestClientStats(t *testing.T) {
	c, _ := newClient(t)
	ctx := t.Context()
	box := ok[client.ContainerCreateResult](t)(c.ContainerCreate(ctx, client.ContainerCreateOptions{Config: &container.Config{Image: "alpine", Cmd: []string{"sleep"}}})).ID
	one := ok[client.ContainerStatsResult](t)(c.ContainerStats(ctx, box, client.ContainerStatsOptions{}))
	if text, err := io.ReadAll(one.Body); err != nil || strings.Count(string(text), "\n") != 1 {
		t.Errorf("one sample: %q, %v", text, err)
	}
	many := ok[client.ContainerStatsResult](t)(c.ContainerStats(ctx, box, client.ContainerStatsOptions{Stream: true}))
	defer func() { _ = many.Body.Close() }()
	buf, lines := make([]byte, 4096), 0
	for lines < 3 {
		n, err := many.Body.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		lines += strings.Count(string(buf[:n]), "\n")
	}
	isClass[client.ContainerStatsResult](t, errdefs.IsNotFound)(c.ContainerStats(ctx, "nope", client.ContainerStatsOptions{}))
}

func TestClientImages(t *testing.T) {
	c, f := newClient(t)
	ctx := t.Context()
	pull := ok[client.ImagePullResponse](t)(c.ImagePull(ctx, "team/app:1", client.ImagePullOptions{
		RegistryAuth: "eyJ1c2VybmFtZSI6InUifQ==", Platforms: []ocispec.Platform{{OS: "linux", Architecture: "arm64"}}}))
	if err := pull.Wait(ctx); err != nil {
		t.Fatal(err)
	}
	f.eventually(t, "pull team/app:1 &{arm64 linux  [] } &{Username:u Password: Auth: ServerAddress: IdentityToken: RegistryToken:}")
	broken := ok[client.ImagePullResponse](t)(c.ImagePull(ctx, "broken", client.ImagePullOptions{}))
	if err := broken.Wait(ctx); err == nil || !strings.Contains(err.Error(), "layer broken:latest is broken") {
		t.Errorf("broken pull: %v", err)
	}
	isClass[client.ImagePullResponse](t, errdefs.IsNotFound)(c.ImagePull(ctx, "absent", client.ImagePullOptions{}))
	digest := "a@sha256:" + strings.Repeat("1", 64)
	if err := ok[client.ImagePullResponse](t)(c.ImagePull(ctx, digest, client.ImagePullOptions{})).Wait(ctx); err != nil {
		t.Error(err)
	}
	f.eventually(t, "pull "+digest+" <nil> <nil>")

	if l := ok[client.ImageListResult](t)(c.ImageList(ctx, client.ImageListOptions{All: true, Manifests: true, Filters: client.Filters{}.Add("reference", "x")})); len(l.Items) != 3 {
		t.Errorf("list %+v", l.Items)
	}
	f.eventually(t, "images true map[reference:map[x:true]]")
	if r := ok[client.ImageInspectResult](t)(c.ImageInspect(ctx, "team/app:1")); r.Os != "linux" {
		t.Errorf("inspect %+v", r)
	}
	isClass[client.ImageInspectResult](t, errdefs.IsNotFound)(c.ImageInspect(ctx, "team/app:1", client.ImageInspectWithPlatform(&ocispec.Platform{OS: "linux", Architecture: "s390x"})))
	ok[client.ImageHistoryResult](t)(c.ImageHistory(ctx, "team/app:1"))
	ok[client.ImageTagResult](t)(c.ImageTag(ctx, client.ImageTagOptions{Source: "alpine", Target: "reg.io:5000/a/b"}))
	f.eventually(t, "tag alpine reg.io:5000/a/b:latest")
	saved, err := io.ReadAll(ok[client.ImageSaveResult](t)(c.ImageSave(ctx, []string{"alpine", "team/app:1"})))
	if string(saved) != "tar of alpine\ntar of team/app:1\n" || err != nil {
		t.Errorf("saved %q, %v", saved, err)
	}
	load := ok[client.ImageLoadResult](t)(c.ImageLoad(ctx, strings.NewReader("a tar"), client.ImageLoadWithQuiet(true)))
	if text, err := io.ReadAll(load); !strings.Contains(string(text), "Loaded image: alpine:latest") || err != nil {
		t.Errorf("load %q, %v", text, err)
	}
	f.eventually(t, `load true "a tar"`)
	imported := ok[client.ImageImportResult](t)(c.ImageImport(ctx, client.ImageImportSource{Source: strings.NewReader("tar"), SourceName: "-"},
		"imp:2", client.ImageImportOptions{Message: "m", Changes: []string{"ENV a=b", "CMD x"}}))
	if _, err := io.ReadAll(imported); err != nil {
		t.Error(err)
	}
	f.eventually(t, `import imp:2 "m" ["ENV a=b" "CMD x"] "tar"`)
	if r := ok[client.ImageRemoveResult](t)(c.ImageRemove(ctx, "team/app:1", client.ImageRemoveOptions{Force: true, PruneChildren: true})); r.Items[0].Untagged != "team/app:1" {
		t.Errorf("removed %+v", r)
	}
	f.eventually(t, "rmi team/app:1 true false")
	ok[client.ImagePruneResult](t)(c.ImagePrune(ctx, client.ImagePruneOptions{Filters: client.Filters{}.Add("dangling", "false")}))
	f.eventually(t, "image prune map[dangling:map[false:true]]")
	isClass[client.ImagePushResponse](t, errdefs.IsNotImplemented)(c.ImagePush(ctx, "alpine", client.ImagePushOptions{}))
	isClass[client.ImageSearchResult](t, errdefs.IsNotImplemented)(c.ImageSearch(ctx, "x", client.ImageSearchOptions{}))
}

func TestClientNetworks(t *testing.T) {
	c, f := newClient(t)
	ctx := t.Context()
	listed := ok[client.NetworkListResult](t)(c.NetworkList(ctx, client.NetworkListOptions{Filters: client.Filters{}.Add("driver", "null")}))
	if len(listed.Items) != 1 || listed.Items[0].Name != "none" {
		t.Errorf("networks %+v", listed.Items)
	}
	f.eventually(t, "networks [driver]")
	ok[client.NetworkInspectResult](t)(c.NetworkInspect(ctx, "none", client.NetworkInspectOptions{}))
	isClass[client.NetworkInspectResult](t, errdefs.IsNotFound)(c.NetworkInspect(ctx, "none", client.NetworkInspectOptions{Scope: "swarm"}))
	isClass[client.NetworkInspectResult](t, errdefs.IsNotFound)(c.NetworkInspect(ctx, "web", client.NetworkInspectOptions{}))
	if made := ok[client.NetworkCreateResult](t)(c.NetworkCreate(ctx, "web", client.NetworkCreateOptions{})); len(made.ID) != 64 {
		t.Errorf("created %+v", made)
	}
	f.eventually(t, "network create web")
	isClass[client.NetworkCreateResult](t, errdefs.IsInvalidArgument)(c.NetworkCreate(ctx, "", client.NetworkCreateOptions{}))
	ok[client.NetworkConnectResult](t)(c.NetworkConnect(ctx, "web", client.NetworkConnectOptions{
		Container: "x", EndpointConfig: &network.EndpointSettings{Aliases: []string{"a"}}}))
	ok[client.NetworkConnectResult](t)(c.NetworkConnect(ctx, "web", client.NetworkConnectOptions{Container: "y"}))
	ok[client.NetworkDisconnectResult](t)(c.NetworkDisconnect(ctx, "web", client.NetworkDisconnectOptions{Container: "x", Force: true}))
	ok[client.NetworkPruneResult](t)(c.NetworkPrune(ctx, client.NetworkPruneOptions{Filters: client.Filters{}.Add("label", "a")}))
	ok[client.NetworkRemoveResult](t)(c.NetworkRemove(ctx, "web", client.NetworkRemoveOptions{}))
	isClass[client.NetworkRemoveResult](t, errdefs.IsPermissionDenied)(c.NetworkRemove(ctx, "none", client.NetworkRemoveOptions{}))
	for _, call := range []string{"connect web x [a]", "connect web y []", "disconnect web x true", "network prune [label]", "network remove web"} {
		f.eventually(t, call)
	}
}

func TestClientVolumes(t *testing.T) {
	c, f := newClient(t)
	ctx := t.Context()
	if v := ok[client.VolumeListResult](t)(c.VolumeList(ctx, client.VolumeListOptions{Filters: make(client.Filters).Add("name", "x")})); len(v.Items) != 0 {
		t.Errorf("volumes %+v", v.Items)
	}
	if v := ok[client.VolumeCreateResult](t)(c.VolumeCreate(ctx, client.VolumeCreateOptions{Name: "v", Labels: map[string]string{"a": "b"}})); v.Volume.Name != "v" {
		t.Errorf("made %+v", v)
	}
	if v := ok[client.VolumeInspectResult](t)(c.VolumeInspect(ctx, "data", client.VolumeInspectOptions{})); v.Volume.Driver != "local" {
		t.Errorf("%+v", v)
	}
	isClass[client.VolumeInspectResult](t, errdefs.IsNotFound)(c.VolumeInspect(ctx, "v", client.VolumeInspectOptions{}))
	ok[client.VolumeRemoveResult](t)(c.VolumeRemove(ctx, "data", client.VolumeRemoveOptions{Force: true}))
	isClass[client.VolumeRemoveResult](t, errdefs.IsNotFound)(c.VolumeRemove(ctx, "v", client.VolumeRemoveOptions{}))
	ok[client.VolumePruneResult](t)(c.VolumePrune(ctx, client.VolumePruneOptions{All: true}))
	for _, call := range []string{"volumes [name]", "volume create v map[a:b]", "volume remove data true", "volume prune [all]"} {
		f.eventually(t, call)
	}
}

func TestClientAbsent(t *testing.T) {
	c, _ := newClient(t)
	ctx := t.Context()
	ok[client.PluginListResult](t)(c.PluginList(ctx, client.PluginListOptions{}))
	isClass[client.SwarmInspectResult](t, errdefs.IsUnavailable)(c.SwarmInspect(ctx, client.SwarmInspectOptions{}))
	isClass[client.SwarmInitResult](t, errdefs.IsNotImplemented)(c.SwarmInit(ctx, client.SwarmInitOptions{}))
	isClass[client.ImageBuildResult](t, errdefs.IsNotImplemented)(c.ImageBuild(ctx, strings.NewReader(""), client.ImageBuildOptions{}))
}

// zeroNano is how the fake notes the zero time.
func zeroNano() string { return "-6795364578871345152" }
