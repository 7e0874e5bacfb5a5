package main

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/container"
)

// frontProgram is a program with package front's entry.
func frontProgram(t *testing.T) string {
	t.Helper()
	if runtime.GOOS+runtime.GOARCH != "linuxamd64" {
		t.Skip("there is no entry for this machine")
	}
	program := filepath.Join(t.TempDir(), "program")
	cmd := exec.Command("go", "build", "-ldflags", "-E github.com/cradlevm/cradle/cmd/cradle/front.entry", "-o", program, "./front/testdata/left")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return program
}

// askedInFront is the words that package front asks a daemon for; nil when it leaves the command alone.
func askedInFront(t *testing.T, program string, args ...string) []string {
	t.Helper()
	var words []string
	mux := http.NewServeMux()
	mux.HandleFunc("POST /cradle/v1/run", func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		words = strings.Split(string(body), "\x00")
		w.WriteHeader(http.StatusNotFound)
	})
	run := shortDir(t)
	server := httptest.NewUnstartedServer(mux)
	server.Listener.Close()
	server.Listener = listenAt(t, run+"/"+socketName)
	server.Start()
	defer server.Close()
	cmd := exec.CommandContext(t.Context(), program, args...)
	cmd.Env = []string{envRun + "=" + run, "HOME=" + run}
	if out, _ := cmd.CombinedOutput(); cmd.ProcessState.ExitCode() != 99 { // its own
		t.Errorf("%v, with a daemon that cannot do it: %s", cmd.ProcessState, out)
	}
	return words
}

// What the front makes of a command is, to the last field, what docker's library makes of it.
func TestRunInFrontAsksForTheSame(t *testing.T) {
	program := frontProgram(t)
	for _, line := range []string{
		"busybox", "busybox true", "busybox sh -c --rm", "--rm busybox true", "-d busybox", "--detach --rm redis:7",
		"--network none busybox true", "--network=none --rm busybox true", "--network host busybox", "--network my.net-1 busybox",
		"--network default busybox", "--network bridge --name a_b busybox", "--name=x --rm -d localhost:5000/a/b@sha256:" + strings.Repeat("a", 64),
		"-e A=b busybox env", "--env A= --env=B=c=d -e C=e,f busybox env",
	} {
		t.Run(line, func(t *testing.T) {
			args := append([]string{"run"}, strings.Fields(line)...)
			words := askedInFront(t, program, args...)
			if words == nil {
				t.Fatal("it is left to the library")
			}
			o, err := parseRun(words)
			if err != nil {
				t.Fatal(err)
			}
			fake := new(fakeNode)
			if r := newHouse(t).cradle(t, []string{envHost + "=unix://" + serveFake(t, fake)}, args...); r.code != 0 {
				t.Fatalf("%+v", r)
			}
			var want container.CreateRequest
			if err := json.Unmarshal([]byte(fake.created), &want); err != nil {
				t.Fatal(err)
			}
			slices.Sort(want.Env) // it has no order there
			if !reflect.DeepEqual(o.request, want) {
				got, _ := json.Marshal(o.request)
				t.Errorf("it asks for\n%s, want\n%s", got, fake.created)
			}
			asked := fake.requests()
			if attached := slices.ContainsFunc(asked, func(s string) bool { return strings.HasSuffix(s, "/attach") }); attached == o.detach {
				t.Errorf("detached %v, but the library asked %q", o.detach, asked)
			}
			if fake.name != o.name {
				t.Errorf("name %q, want %q", o.name, fake.name)
			}
		})
	}
}

func TestRunInFrontRefuses(t *testing.T) {
	for _, words := range []string{
		"", "rm", "rm||", "||", "|", "rm|", "|Busybox", "|a b", "unknown||busybox", "unknown=1||busybox", "network=||busybox", "name=||busybox",
		"network=a|network=b||busybox", "name=a|name=b||busybox", "rm|rm||busybox", "env=A=b|env=A=c||busybox", "size=x||busybox", "size=-1x2||busybox",
	} {
		if o, err := parseRun(strings.Split(words, "|")); err == nil {
			t.Errorf("%q: %+v", words, o)
		}
	}
	o, err := parseRun(strings.Split("size=24x80||busybox", "|"))
	if err != nil || o.request.HostConfig.ConsoleSize != [2]uint{24, 80} {
		t.Errorf("%+v, %v", o, err)
	}
}
