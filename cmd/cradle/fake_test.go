package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cradlevm/cradle/pool"
)

// The test binary is also the program under test: with envAs set it is cradle, with a fake of the node.
const (
	envAs = "CRADLE_TEST_AS"

	asCradle       = "cradle"   // the daemon serves fakeHandler
	asBusy         = "busy"     // … and always has something to keep
	asBroken       = "broken"   // the daemon fails to open
	asMute         = "mute"     // the daemon never gets ready
	asCrashing     = "crashing" // the daemon panics
	startedFile    = "started"  // in CRADLE_ROOT: a line for each daemon that opened
	brokenSentence = "the store is torn: page 7"
)

func TestMain(m *testing.M) {
	as := os.Getenv(envAs)
	if as == "" {
		os.Exit(m.Run())
	}
	ctx, stop := signalContext(context.Background())
	err := run(ctx, os.Args[1:], func(ctx context.Context, c daemonConfig) error {
		if t := os.Getenv("CRADLE_TEST_IDLE"); t != "" {
			c.IdleTimeout, _ = time.ParseDuration(t)
		}
		return serveDaemon(ctx, c, func(ctx context.Context, c daemonConfig) (*service, error) { return openFake(ctx, as, c) })
	})
	code := report(ctx, err)
	stop()
	os.Exit(code)
}

func openFake(ctx context.Context, as string, c daemonConfig) (*service, error) {
	switch as {
	case asBroken:
		return nil, errors.New(brokenSentence)
	case asMute:
		<-ctx.Done()
		return nil, context.Cause(ctx)
	case asCrashing:
		panic("a bug")
	}
	f, err := os.OpenFile(filepath.Join(c.Root, startedFile), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	fmt.Fprintln(f, os.Getpid())
	if err := f.Close(); err != nil {
		return nil, err
	}
	ended := make(chan struct{})
	fake := &fakeNode{APIVersion: "1.51", reset: sync.OnceFunc(func() { close(ended) })}
	return &service{
		Handler: fake,
		Busy:    func() bool { return as == asBusy },
		Close:   func() error { return nil },
		Ended:   ended,
	}, nil
}

// fakeNode answers the little of the API that the tests need, and keeps what it was asked.
type fakeNode struct {
	APIVersion  string
	ExitCode    int
	CreateError string // answered 400
	StartError  string // answered 500
	NoImage     bool
	Summoned    []byte
	reset       func()

	mu      sync.Mutex
	asked   []string
	created string // the last container's create request
	name    string // and its name
	changed string // the last change of the pool, or of a network policy
}

func (f *fakeNode) requests() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]string(nil), f.asked...)
}

func (f *fakeNode) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	f.asked = append(f.asked, r.Method+" "+r.URL.Path)
	f.mu.Unlock()
	path := r.URL.Path
	if strings.HasPrefix(path, "/v1.") {
		path = path[1+strings.IndexByte(path[1:], '/'):]
	}
	fail := func(code int, message string) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(code)
		_ = json.NewEncoder(w).Encode(map[string]string{"message": message})
	}
	answer := func(v any) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(v)
	}
	const id = "4242424242424242424242424242424242424242424242424242424242424242"
	switch {
	case path == "/_ping":
		w.Header().Set("Api-Version", f.APIVersion)
		w.Header().Set("Ostype", "linux")
	case path == "/info":
		answer(map[string]any{"ServerVersion": "fake", "OSType": "linux"})
	case path == "/version":
		answer(map[string]any{"Version": "fake", "ApiVersion": f.APIVersion, "Os": "linux", "Arch": "amd64"})
	case path == "/containers/json":
		answer([]any{})
	case path == "/events":
		answer(map[string]any{"Type": "container", "Action": "start", "Actor": map[string]any{"ID": id}})
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	case path == "/containers/create" && f.NoImage:
		fail(http.StatusNotFound, "No such image: docker:latest")
	case path == "/containers/create" && f.CreateError != "":
		fail(http.StatusBadRequest, f.CreateError)
	case path == "/containers/create":
		b, _ := io.ReadAll(r.Body)
		f.mu.Lock()
		f.created, f.name = string(b), r.URL.Query().Get("name")
		f.mu.Unlock()
		answer(map[string]any{"Id": id})
	case path == "/images/create":
		fail(http.StatusNotFound, "docker daemon says: pull access denied for docker")
	case strings.HasSuffix(path, "/attach"):
		f.attach(w)
	case strings.HasSuffix(path, "/wait"):
		answer(map[string]any{"StatusCode": f.ExitCode})
	case strings.HasSuffix(path, "/start") && f.StartError != "":
		fail(http.StatusInternalServerError, f.StartError)
	case strings.HasSuffix(path, "/start"):
		w.WriteHeader(http.StatusNoContent)
	case path == "/containers/prune":
		answer(map[string]any{"ContainersDeleted": []string{id}, "SpaceReclaimed": 1000})
	case path == "/images/prune":
		answer(map[string]any{"ImagesDeleted": []map[string]string{{"Untagged": "redis:latest"}, {"Deleted": "sha256:1"}}, "SpaceReclaimed": 500})
	case path == "/cradle/v1/reset":
		f.reset()
		w.WriteHeader(http.StatusNoContent)
	case strings.HasPrefix(path, "/cradle/v1/containers/gone/"):
		fail(http.StatusNotFound, "No such container: gone")
	case path == "/cradle/v1/containers/redis/clone":
		answer(map[string]any{"IDs": []string{id + "-" + r.URL.Query().Encode()}})
	case path == "/cradle/v1/containers/redis/cost":
		answer(fakeCost("redis"))
	case strings.HasPrefix(path, "/cradle/v1/networks/policies"):
		f.policies(w, r, strings.TrimPrefix(path, "/cradle/v1/networks/policies"))
	case path == "/cradle/v1/costs":
		answer([]map[string]any{fakeCost("redis"), fakeCost("busybox")})
	case strings.HasSuffix(path, "-state"):
		w.WriteHeader(http.StatusNoContent)
	case path == "/cradle/v1/summon" && f.Summoned == nil:
		fail(http.StatusNotFound, "No such image: "+r.URL.Query().Get("image"))
	case path == "/cradle/v1/summon":
		_, _ = w.Write(f.Summoned)
	case path == "/cradle/v1/snapshots/kept/archive":
		fmt.Fprint(w, "an archive, image="+r.URL.Query().Get("image"))
	case path == "/cradle/v1/snapshots/torn/archive":
		fmt.Fprint(w, "half an")
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	case path == "/cradle/v1/snapshots/import" && r.URL.Query().Get("trust") != "true":
		fail(http.StatusBadRequest, "only with --trust")
	case path == "/cradle/v1/snapshots/import":
		body, err := io.ReadAll(r.Body)
		if err != nil {
			fail(http.StatusBadRequest, err.Error())
			return
		}
		answer(map[string]string{"Name": r.URL.Query().Get("name") + " of " + string(body)})
	case path == "/cradle/v1/starts":
		answer([]map[string]any{{
			"container": r.URL.Query().Get("container"), "began": time.Now().Add(-time.Second), "way": "take",
			"phases": []map[string]any{{"name": "create", "end": 1, "took": 1}, {"name": "run", "end": time.Second - 1, "took": time.Second - 2}},
		}})
	case path == "/cradle/v1/pool":
		b, _ := io.ReadAll(r.Body)
		f.mu.Lock()
		f.changed = string(b)
		f.mu.Unlock()
		answer(pool.Status{Settings: pool.Settings{Min: 2, Max: 16, Memory: 1 << 30}, Classes: []pool.ClassStatus{{
			Class: pool.Class{CPUs: 1, Memory: 512 << 20}, Template: true, Ready: 3, Wanted: 4, Taken: 5, Restored: 6, Missed: 7,
			Private: 24 << 20, Shared: 60 << 20, TakenPrepared: 2,
			Prepared: []pool.PreparedStatus{{Name: "redis", Ready: 2}, {Name: "nginx"}, {Name: "busybox", Ready: 1}},
		}}})
	default:
		fail(http.StatusNotImplemented, path+" is not supported")
	}
}

// attach takes the connection over and says one line on standard output.
func (f *fakeNode) attach(w http.ResponseWriter) {
	conn, rw, err := w.(http.Hijacker).Hijack()
	if err != nil {
		return
	}
	defer conn.Close()
	_, _ = io.WriteString(conn, "HTTP/1.1 101 UPGRADED\r\nContent-Type: application/vnd.docker.multiplexed-stream\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")
	text := "hello\n"
	_, _ = conn.Write(append([]byte{1, 0, 0, 0, 0, 0, 0, byte(len(text))}, text...))
	_ = rw.Flush()
}

// serveFake serves f on a socket of its own and returns the socket's path.
func serveFake(t *testing.T, f *fakeNode) string {
	t.Helper()
	if f.APIVersion == "" {
		f.APIVersion = "1.51"
	}
	path := filepath.Join(shortDir(t), socketName)
	l := listenAt(t, path)
	server := &http.Server{Handler: f}
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { _ = server.Close() })
	return path
}

func listenAt(t *testing.T, path string) net.Listener {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// shortDir is a temporary directory with a path short enough for sockets, whatever the test's name is.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "cradle-cli-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// house is an installation of its own for one test: a root, a runtime directory, a home.
type house struct {
	dir string
	env []string
}

func newHouse(t *testing.T) *house {
	t.Helper()
	h := &house{dir: shortDir(t)}
	h.env = append(cleanEnv(),
		envAs+"="+asCradle, envRoot+"="+h.root(), envRun+"="+h.run(), "HOME="+h.dir, "DOCKER_CONFIG="+h.dir, "CRADLE_TEST_IDLE=300ms")
	t.Cleanup(func() { h.endDaemon(t) })
	return h
}

func (h *house) root() string { return filepath.Join(h.dir, "root") }
func (h *house) run() string  { return filepath.Join(h.dir, "run") }

// cleanEnv is the environment without what would lead the program elsewhere.
func cleanEnv() []string {
	var kept []string
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "CRADLE_") && !strings.HasPrefix(kv, "DOCKER_") {
			kept = append(kept, kv)
		}
	}
	return kept
}

// command prepares the program with more environment.
func (h *house) command(env []string, args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(append([]string(nil), h.env...), env...)
	return cmd
}

type result struct {
	stdout, stderr string
	code           int
}

// cradle runs the program to its end.
func (h *house) cradle(t *testing.T, env []string, args ...string) result {
	t.Helper()
	return finish(t, h.command(env, args...))
}

func finish(t *testing.T, cmd *exec.Cmd) result {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil && !errors.As(err, new(*exec.ExitError)) {
		t.Fatal(err)
	}
	return result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// endDaemon waits until no daemon holds the root: an idle one ends by itself, and soon in these tests.
func (h *house) endDaemon(t *testing.T) {
	t.Helper()
	if !isDir(h.root()) {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	lock, err := waitLock(ctx, filepath.Join(h.root(), rootLockName))
	if err != nil {
		t.Errorf("the daemon has not ended: %v", err)
		return
	}
	_ = lock.Close()
}

// daemons is how many daemons have been started in the house.
func (h *house) daemons(t *testing.T) int {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(h.root(), startedFile))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return bytes.Count(b, []byte("\n"))
}
