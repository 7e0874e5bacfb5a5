package dockerapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/client"
	"go.yaml.in/yaml/v3"
)

// undriven are the routes that the moby client has no call for, and what drives them.
func undriven() map[string]string {
	return map[string]string{
		"GET /containers/{id}/attach/ws": "TestAttachWebSocket",
		"GET /images/{name}/get":         "TestHalfAnswers: the client saves by /images/get, also one image",
		"POST /plugins/pull":             "TestSpecPaths: the client asks for the privileges first, and is refused there",
		"POST /plugins/{name}/upgrade":   "TestSpecPaths: as above",
	}
}

// unwritten are the routes that dockerd serves and the specification does not describe.
func unwritten() map[string]string {
	return map[string]string{
		"POST /grpc":                                       "BuildKit's own protocol follows",
		"POST /build/cancel":                               "BuildKit's",
		"GET /containers/{id}/checkpoints":                 "experimental",
		"POST /containers/{id}/checkpoints":                "experimental",
		"DELETE /containers/{id}/checkpoints/{checkpoint}": "experimental",
	}
}

// TestEveryRoute drives every row of the table with the moby client and holds every answer against the specification.
// A row that is driven by nothing, or that is not in the specification, fails it.
func TestEveryRoute(t *testing.T) {
	w := &witness{spec: readSpec(t), driven: map[string]bool{}}
	f := newFake()
	s := New(f, Options{}).(*server)
	table := s.routes()
	for i, r := range table {
		table[i].handle = func(c *call) error { w.route(c.r, r); return r.handle(c) }
	}
	s.mux = newMux(table)
	c, err := client.New(client.WithHost("unix://" + serveHandler(t, w.watch(t, s))))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	driveAll(t, c)

	w.Lock()
	defer w.Unlock()
	left := undriven()
	for _, r := range table {
		name := r.name()
		_, except := left[name]
		switch {
		case w.driven[name] && except:
			t.Errorf("%s is driven by the client, and on the list of what is not", name)
		case !w.driven[name] && !except:
			t.Errorf("%s: no call of the client leads there", name)
		}
		if _, ok := w.spec.operation(r); !ok && unwritten()[name] == "" {
			t.Errorf("%s is not in the specification", name)
		}
	}
	t.Logf("%d routes, %d driven, %d answers held against the specification", len(table), len(w.driven), w.held)
}

// name is how the specification writes a row.
func (r route) name() string {
	return r.method + " " + strings.Replace(r.path, "{name...}", "{name}", 1) + r.suffix
}

// operation finds a row in the specification, whatever its path's parameters are called there.
func (s spec) operation(r route) (map[string]any, bool) {
	parameter := regexp.MustCompile(`\{[^}]*\}`)
	_, want, _ := strings.Cut(r.name(), " ")
	for path, operations := range s.Paths {
		if parameter.ReplaceAllString(path, "{}") == parameter.ReplaceAllString(want, "{}") {
			op, ok := operations[strings.ToLower(r.method)].(map[string]any)
			return op, ok
		}
	}
	return nil, false
}

// response finds what the specification says of a status; nil when it says nothing.
func (s spec) response(operation map[string]any, status int) map[string]any {
	text, err := yaml.Marshal(operation["responses"])
	if err != nil {
		return nil
	}
	var byStatus map[string]map[string]any // YAML's keys may be numbers
	if err := yaml.Unmarshal(text, &byStatus); err != nil {
		return nil
	}
	return byStatus[fmt.Sprint(status)]
}

// witness sees all requests and answers.
type witness struct {
	sync.Mutex
	spec   spec
	driven map[string]bool
	held   int
}

type routeKey struct{}

func (w *witness) route(r *http.Request, row route) {
	*r.Context().Value(routeKey{}).(*route) = row
	w.Lock()
	defer w.Unlock()
	w.driven[row.name()] = true
}

// watch holds the answers of a handler against the specification.
func (w *witness) watch(t *testing.T, h http.Handler) http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		row := new(route)
		tee := &teeWriter{ResponseWriter: rw}
		h.ServeHTTP(tee, r.WithContext(context.WithValue(r.Context(), routeKey{}, row)))
		if row.handle == nil {
			t.Errorf("%s %s: no route of the table", r.Method, r.URL)
			return
		}
		if err := w.hold(*row, tee); err != nil {
			t.Errorf("%s: %v: %.300s", row.name(), err, &tee.body)
		}
	})
}

func (w *witness) hold(row route, answer *teeWriter) error {
	w.Lock()
	defer w.Unlock()
	w.held++
	operation, ok := w.spec.operation(row)
	if !ok {
		return nil // the table's check tells
	}
	if answer.hijacked {
		return nil
	}
	if answer.status == 0 {
		answer.status = 200
	}
	response := w.spec.response(operation, answer.status)
	if answer.status == http.StatusNotImplemented { // the specification knows of nothing that is not there
		response = map[string]any{"schema": map[string]any{"$ref": "#/definitions/ErrorResponse"}}
	}
	if response == nil && row.name() == "GET /images/get" && answer.status == http.StatusNotFound {
		return nil // dockerd's answer too, for an image that is not there
	}
	if response == nil {
		return fmt.Errorf("status %d is not in the specification", answer.status)
	}
	schema, hasSchema := response["schema"].(map[string]any)
	kind := answer.Header().Get("Content-Type")
	if !hasSchema || row.method == "HEAD" || !strings.HasPrefix(kind, "application/json") {
		return nil
	}
	for d := json.NewDecoder(&answer.body); ; { // a stream is several values
		var value any
		if err := d.Decode(&value); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		if err := w.spec.check(schema, value, "answer"); err != nil {
			return err
		}
	}
}

// teeWriter keeps what is answered.
type teeWriter struct {
	http.ResponseWriter
	status   int
	body     bytes.Buffer
	hijacked bool
}

func (w *teeWriter) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *teeWriter) Write(p []byte) (int, error) {
	w.body.Write(p)
	return w.ResponseWriter.Write(p)
}

func (w *teeWriter) Flush() { _ = http.NewResponseController(w.ResponseWriter).Flush() }

func (w *teeWriter) Unwrap() http.ResponseWriter { w.hijacked = true; return w.ResponseWriter }

func serveHandler(t *testing.T, h http.Handler) (socket string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "d.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(h)
	_ = s.Listener.Close()
	s.Listener = l
	s.Start()
	t.Cleanup(func() {
		s.CloseClientConnections()
		s.Close()
	})
	return socket
}

// driveAll makes every call that the client has, most on something that is there. What the calls answer is tested
// elsewhere, by area; here each must only be answered.
func driveAll(t *testing.T, c *client.Client) {
	t.Helper()
	ctx := t.Context()
	called := func(_ any, err error) {
		t.Helper()
		if errors.Is(err, io.ErrUnexpectedEOF) || client.IsErrConnectionFailed(err) {
			t.Error(err)
		}
	}
	read := func(r io.ReadCloser, err error) {
		t.Helper()
		called(nil, err)
		if err == nil {
			_, _ = io.Copy(io.Discard, r)
			_ = r.Close()
		}
	}
	called(c.Ping(ctx, client.PingOptions{NegotiateAPIVersion: true}))
	head, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://d/_ping", nil)
	if err != nil {
		t.Fatal(err)
	}
	plain := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return c.Dialer()(ctx) }}}
	resp, err := plain.Do(head) // the client pings with HEAD, and with GET only where that fails
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	driveSystem(t, c, called)
	box := driveContainers(t, c, called, read)
	driveFiles(t, c, box, called, read)
	driveImages(t, c, called, read)
	driveAbsent(t, c, called, read)
	driveSwarm(t, c, called, read)
	called(c.ContainerRemove(ctx, box, client.ContainerRemoveOptions{Force: true}))
}

func driveSystem(t *testing.T, c *client.Client, called func(any, error)) {
	ctx := t.Context()
	called(c.ServerVersion(ctx, client.ServerVersionOptions{}))
	called(c.Info(ctx, client.InfoOptions{}))
	called(c.DiskUsage(ctx, client.DiskUsageOptions{Images: true, Containers: true, Volumes: true, BuildCache: true, Verbose: true}))
	called(c.RegistryLogin(ctx, client.RegistryLoginOptions{Username: "u", ServerAddress: "reg.io"}))
	eventsCtx, cancel := context.WithCancel(ctx)
	e := c.Events(eventsCtx, client.EventsListOptions{})
	<-e.Messages
	cancel()
	<-e.Err
}

func driveContainers(t *testing.T, c *client.Client, called func(any, error), read func(io.ReadCloser, error)) (id string) {
	ctx := t.Context()
	create := func(name string, cmd ...string) string {
		r, err := c.ContainerCreate(ctx, client.ContainerCreateOptions{Name: name,
			Config: &container.Config{Image: "alpine", Cmd: cmd}, HostConfig: &container.HostConfig{}})
		called(r, err)
		return r.ID
	}
	short := create("short", "echo", "hi")
	attach, err := c.ContainerAttach(ctx, short, client.ContainerAttachOptions{Stream: true, Stdout: true})
	called(attach, err)
	called(c.ContainerStart(ctx, short, client.ContainerStartOptions{}))
	wait := c.ContainerWait(ctx, short, client.ContainerWaitOptions{})
	select {
	case <-wait.Result:
	case err := <-wait.Error:
		t.Error(err)
	}
	attach.Close()
	called(c.ContainerRemove(ctx, short, client.ContainerRemoveOptions{}))
	called(c.ContainerRemove(ctx, short, client.ContainerRemoveOptions{})) // is gone

	box := create("box", "sleep")
	create("box") // is taken
	called(c.ContainerStart(ctx, box, client.ContainerStartOptions{}))
	called(c.ContainerStart(ctx, box, client.ContainerStartOptions{})) // runs
	called(c.ContainerList(ctx, client.ContainerListOptions{All: true, Size: true}))
	for _, name := range []string{box, "missing"} {
		called(c.ContainerInspect(ctx, name, client.ContainerInspectOptions{Size: true}))
		called(c.ContainerResize(ctx, name, client.ContainerResizeOptions{Height: 1, Width: 2}))
		called(c.ContainerTop(ctx, name, client.ContainerTopOptions{}))
		logs, err := c.ContainerLogs(ctx, name, client.ContainerLogsOptions{ShowStdout: true, ShowStderr: true})
		read(logs, err)
		stats, err := c.ContainerStats(ctx, name, client.ContainerStatsOptions{})
		read(stats.Body, err)
		called(c.ContainerPause(ctx, name, client.ContainerPauseOptions{}))
		called(c.ContainerUnpause(ctx, name, client.ContainerUnpauseOptions{}))
		called(c.ContainerUpdate(ctx, name, client.ContainerUpdateOptions{Resources: &container.Resources{Memory: 1 << 30}}))
		driveExec(t, c, name, called)
		called(c.CheckpointList(ctx, name, client.CheckpointListOptions{}))
		called(c.CheckpointCreate(ctx, name, client.CheckpointCreateOptions{CheckpointID: "x"}))
		called(c.CheckpointRemove(ctx, name, client.CheckpointRemoveOptions{CheckpointID: "x"}))
		called(c.ContainerRestart(ctx, name, client.ContainerRestartOptions{}))
		called(c.ContainerRename(ctx, name, client.ContainerRenameOptions{NewName: "crate"}))
		called(c.ContainerKill(ctx, name, client.ContainerKillOptions{Signal: "HUP"}))
		called(c.ContainerStop(ctx, name, client.ContainerStopOptions{}))
	}
	called(c.ContainerPrune(ctx, client.ContainerPruneOptions{}))
	return box
}

func driveExec(t *testing.T, c *client.Client, name string, called func(any, error)) {
	ctx := t.Context()
	exec, err := c.ExecCreate(ctx, name, client.ExecCreateOptions{Cmd: []string{"sleep"}, AttachStdout: true, TTY: true})
	called(exec, err)
	if exec.ID == "" {
		exec.ID = "missing"
	}
	attach, err := c.ExecAttach(ctx, exec.ID, client.ExecAttachOptions{TTY: true})
	called(attach, err)
	called(c.ExecResize(ctx, exec.ID, client.ExecResizeOptions{Height: 3, Width: 4}))
	called(c.ExecInspect(ctx, exec.ID, client.ExecInspectOptions{}))
	called(c.ExecStart(ctx, exec.ID, client.ExecStartOptions{Detach: true})) // once only
	if err == nil {
		attach.Close()
	}
}

func driveFiles(t *testing.T, c *client.Client, box string, called func(any, error), read func(io.ReadCloser, error)) {
	ctx := t.Context()
	for _, name := range []string{box, "missing"} {
		called(c.ContainerStatPath(ctx, name, client.ContainerStatPathOptions{Path: "/etc"}))
		archive, err := c.CopyFromContainer(ctx, name, client.CopyFromContainerOptions{SourcePath: "/etc"})
		read(archive.Content, err)
		called(c.CopyToContainer(ctx, name, client.CopyToContainerOptions{DestinationPath: "/etc", Content: strings.NewReader("")}))
		called(c.ContainerDiff(ctx, name, client.ContainerDiffOptions{}))
		export, err := c.ContainerExport(ctx, name, client.ContainerExportOptions{})
		read(export, err)
		called(c.ContainerCommit(ctx, name, client.ContainerCommitOptions{Reference: "committed:1"}))
	}
}

func driveImages(t *testing.T, c *client.Client, called func(any, error), read func(io.ReadCloser, error)) {
	ctx := t.Context()
	for _, name := range []string{"alpine", "team/app:1", "absent"} {
		pull, err := c.ImagePull(ctx, name, client.ImagePullOptions{})
		read(pull, err)
		push, err := c.ImagePush(ctx, name, client.ImagePushOptions{})
		read(push, err)
		called(c.ImageInspect(ctx, name))
		called(c.ImageHistory(ctx, name))
		called(c.ImageAttestations(ctx, name))
		called(c.ImageTag(ctx, client.ImageTagOptions{Source: name, Target: "other:1"}))
		called(c.DistributionInspect(ctx, name, client.DistributionInspectOptions{}))
		save, err := c.ImageSave(ctx, []string{name})
		read(save, err)
	}
	imported, err := c.ImageImport(ctx, client.ImageImportSource{Source: strings.NewReader("tar"), SourceName: "-"}, "imp:1", client.ImageImportOptions{})
	read(imported, err)
	load, err := c.ImageLoad(ctx, strings.NewReader("tar"))
	read(load, err)
	called(c.ImageList(ctx, client.ImageListOptions{All: true}))
	called(c.ImageSearch(ctx, "x", client.ImageSearchOptions{}))
	called(c.ImageRemove(ctx, "team/app:1", client.ImageRemoveOptions{}))
	called(c.ImageRemove(ctx, "absent", client.ImageRemoveOptions{}))
	called(c.ImagePrune(ctx, client.ImagePruneOptions{}))
}

func driveAbsent(t *testing.T, c *client.Client, called func(any, error), read func(io.ReadCloser, error)) {
	ctx := t.Context()
	called(c.NetworkList(ctx, client.NetworkListOptions{}))
	for _, name := range []string{"none", "missing"} {
		called(c.NetworkInspect(ctx, name, client.NetworkInspectOptions{}))
		called(c.NetworkRemove(ctx, name, client.NetworkRemoveOptions{}))
		called(c.NetworkConnect(ctx, name, client.NetworkConnectOptions{Container: "box"}))
		called(c.NetworkDisconnect(ctx, name, client.NetworkDisconnectOptions{Container: "box"}))
	}
	called(c.NetworkCreate(ctx, "web", client.NetworkCreateOptions{}))
	called(c.NetworkPrune(ctx, client.NetworkPruneOptions{}))

	called(c.VolumeList(ctx, client.VolumeListOptions{}))
	called(c.VolumeCreate(ctx, client.VolumeCreateOptions{Name: "v"}))
	called(c.VolumeInspect(ctx, "missing", client.VolumeInspectOptions{}))
	called(c.VolumeUpdate(ctx, "missing", client.VolumeUpdateOptions{}))
	called(c.VolumeRemove(ctx, "missing", client.VolumeRemoveOptions{}))
	called(c.VolumeRemove(ctx, "missing", client.VolumeRemoveOptions{Force: true}))
	called(c.VolumePrune(ctx, client.VolumePruneOptions{}))

	called(c.PluginList(ctx, client.PluginListOptions{}))
	called(c.PluginInspect(ctx, "p", client.PluginInspectOptions{}))
	called(c.PluginEnable(ctx, "p", client.PluginEnableOptions{}))
	called(c.PluginDisable(ctx, "p", client.PluginDisableOptions{}))
	called(c.PluginSet(ctx, "p", client.PluginSetOptions{Args: []string{"a=b"}}))
	called(c.PluginRemove(ctx, "p", client.PluginRemoveOptions{}))
	called(c.PluginCreate(ctx, strings.NewReader("tar"), client.PluginCreateOptions{RepoName: "p"}))
	called(c.PluginInstall(ctx, "p", client.PluginInstallOptions{RemoteRef: "docker.io/library/p:latest"}))                             // asks for privileges first
	called(c.PluginInstall(ctx, "p", client.PluginInstallOptions{RemoteRef: "docker.io/library/p:latest", AcceptAllPermissions: true})) // asks for none
	called(c.PluginUpgrade(ctx, "p", client.PluginUpgradeOptions{RemoteRef: "docker.io/library/p:latest", AcceptAllPermissions: true}))
	push, err := c.PluginPush(ctx, "p", client.PluginPushOptions{})
	read(push, err)

	build, err := c.ImageBuild(ctx, strings.NewReader(""), client.ImageBuildOptions{})
	read(build.Body, err)
	called(c.BuildCancel(ctx, "id", client.BuildCancelOptions{}))
	called(c.BuildCachePrune(ctx, client.BuildCachePruneOptions{}))
	for _, path := range []string{"/session", "/grpc"} {
		if conn, err := c.DialHijack(ctx, path, "h2c", nil); err == nil {
			_ = conn.Close()
			t.Errorf("%s was taken over", path)
		}
	}
}

func driveSwarm(t *testing.T, c *client.Client, called func(any, error), read func(io.ReadCloser, error)) {
	ctx := t.Context()
	called(c.SwarmInspect(ctx, client.SwarmInspectOptions{}))
	called(c.SwarmInit(ctx, client.SwarmInitOptions{ListenAddr: "0.0.0.0"}))
	called(c.SwarmJoin(ctx, client.SwarmJoinOptions{ListenAddr: "0.0.0.0"}))
	called(c.SwarmLeave(ctx, client.SwarmLeaveOptions{}))
	called(c.SwarmUpdate(ctx, client.SwarmUpdateOptions{}))
	called(c.SwarmUnlock(ctx, client.SwarmUnlockOptions{Key: "k"}))
	called(c.SwarmGetUnlockKey(ctx))
	called(c.NodeList(ctx, client.NodeListOptions{}))
	called(c.NodeInspect(ctx, "x", client.NodeInspectOptions{}))
	called(c.NodeUpdate(ctx, "x", client.NodeUpdateOptions{}))
	called(c.NodeRemove(ctx, "x", client.NodeRemoveOptions{}))
	called(c.ServiceList(ctx, client.ServiceListOptions{}))
	called(c.ServiceCreate(ctx, client.ServiceCreateOptions{Spec: swarm.ServiceSpec{TaskTemplate: swarm.TaskSpec{ContainerSpec: &swarm.ContainerSpec{Image: "x"}}}}))
	called(c.ServiceInspect(ctx, "x", client.ServiceInspectOptions{}))
	called(c.ServiceUpdate(ctx, "x", client.ServiceUpdateOptions{Spec: swarm.ServiceSpec{TaskTemplate: swarm.TaskSpec{ContainerSpec: &swarm.ContainerSpec{Image: "x"}}}}))
	called(c.ServiceRemove(ctx, "x", client.ServiceRemoveOptions{}))
	logs, err := c.ServiceLogs(ctx, "x", client.ServiceLogsOptions{})
	read(logs, err)
	called(c.TaskList(ctx, client.TaskListOptions{}))
	called(c.TaskInspect(ctx, "x", client.TaskInspectOptions{}))
	tasks, err := c.TaskLogs(ctx, "x", client.TaskLogsOptions{})
	read(tasks, err)
	called(c.SecretList(ctx, client.SecretListOptions{}))
	called(c.SecretCreate(ctx, client.SecretCreateOptions{}))
	called(c.SecretInspect(ctx, "x", client.SecretInspectOptions{}))
	called(c.SecretUpdate(ctx, "x", client.SecretUpdateOptions{}))
	called(c.SecretRemove(ctx, "x", client.SecretRemoveOptions{}))
	called(c.ConfigList(ctx, client.ConfigListOptions{}))
	called(c.ConfigCreate(ctx, client.ConfigCreateOptions{}))
	called(c.ConfigInspect(ctx, "x", client.ConfigInspectOptions{}))
	called(c.ConfigUpdate(ctx, "x", client.ConfigUpdateOptions{}))
	called(c.ConfigRemove(ctx, "x", client.ConfigRemoveOptions{}))
}

// The lists of exceptions name rows of the table.
func TestRouteExceptions(t *testing.T) {
	var names []string
	for _, r := range New(newFake(), Options{}).(*server).routes() {
		names = append(names, r.name())
	}
	for name := range maps.Keys(undriven()) {
		if !slices.Contains(names, name) {
			t.Errorf("%s is no route", name)
		}
	}
	for name := range maps.Keys(unwritten()) {
		if !slices.Contains(names, name) {
			t.Errorf("%s is no route", name)
		}
	}
}
