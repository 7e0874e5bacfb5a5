package front

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// program is one with this package's entry. Its exit code is 99 when the front has left the command to it.
func program(t *testing.T) string {
	t.Helper()
	if runtime.GOOS+runtime.GOARCH != "linuxamd64" {
		t.Skip("there is no entry for this machine")
	}
	path := filepath.Join(t.TempDir(), "program")
	cmd := exec.Command("go", "build", "-ldflags", linked, "-o", path, "./testdata/left")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return path
}

const (
	left   = 99
	linked = "-E github.com/cradlevm/cradle/cmd/cradle/front.entry -X github.com/docker/cli/cli/version.Version=1.2 -X github.com/docker/cli/cli/version.GitCommit=abc"
)

// ran is what a program has said and returned.
type ran struct {
	code     int
	out, err string
}

func (r ran) String() string { return fmt.Sprintf("%d, %q, %q", r.code, r.out, r.err) }

func execute(t *testing.T, env []string, program string, args ...string) ran {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), program, args...)
	var out, errs bytes.Buffer
	cmd.Env, cmd.Stdout, cmd.Stderr = env, &out, &errs
	if err := cmd.Run(); err != nil && !errors.As(err, new(*exec.ExitError)) {
		t.Fatal(err)
	}
	return ran{cmd.ProcessState.ExitCode(), out.String(), errs.String()}
}

// daemon answers requests, each with the next of answers, when it has been asked. Where there is none, it waits for the
// end of the test.
func daemon(t *testing.T, answers ...string) (run string, asked <-chan string) {
	t.Helper()
	run = t.TempDir()
	l, err := net.Listen("unix", filepath.Join(run, "cradle.sock"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	got := make(chan string, 16)
	go func() {
		for i := 0; ; i++ {
			c, err := l.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { c.Close() })
			r, err := http.ReadRequest(bufio.NewReader(c))
			if err != nil {
				got <- err.Error()
				continue
			}
			body, _ := io.ReadAll(r.Body)
			got <- r.Method + " " + r.URL.String() + " " + r.Header.Get("Expect") + " " + string(body)
			if i < len(answers) {
				io.WriteString(c, strings.TrimSuffix(answers[i], stays))
				if !strings.HasSuffix(answers[i], stays) {
					c.Close()
				}
			}
		}
	}()
	return run, got
}

// stays is the end of an answer after which the connection stays.
const stays = "\x00stays"

// record is a part of an answer's body.
func record(stream byte, text string) string {
	n := len(text)
	return string([]byte{stream, 0, 0, 0, byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}) + text
}

func TestExec(t *testing.T) {
	const begun, ok = "HTTP/1.1 100 Continue\r\n\r\n", "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"
	program := program(t)
	long := strings.Repeat("word ", 50000)
	for name, c := range map[string]struct {
		answer string
		ran
	}{
		"exit code":            {begun + ok + record(Exit, "\x07"), ran{7, "", ""}},
		"output":               {begun + ok + record(Stdout, "out") + record(Stderr, "err") + record(Stdout, long) + record(Stdout, "") + record(Exit, "\x00"), ran{0, "out" + long, "err"}},
		"no container":         {begun + "HTTP/1.1 404 Not Found\r\n\r\n{}", ran{code: left}},
		"an older daemon":      {"HTTP/1.1 404 Not Found\r\n\r\n", ran{code: left}},
		"it is on its way out": {"", ran{code: left}},
		"it dies":              {begun, ran{1, "", "lost the cradle daemon: its answer has no end\n"}},
		"it dies later":        {begun + ok + record(Stdout, "out") + "\x01\x00", ran{1, "out", "lost the cradle daemon: its answer has no end\n"}},
		"it dies in a record":  {begun + ok + record(Stdout, "output")[:headSize+3], ran{1, "out", "lost the cradle daemon: its answer has no end\n"}},
		"nonsense":             {begun + ok + "\x01\x00\x00\x00\xff\xff\xff\xff", ran{1, "", "lost the cradle daemon: it answers nonsense\n"}},
		"no code":              {begun + ok + record(Exit, ""), ran{1, "", "lost the cradle daemon: it answers nonsense\n"}},
		"no status":            {"HTTP/1.1\r\n\r\n", ran{code: left}},
		"a short status":       {"HTTP/1.1 10\r\n\r\n", ran{code: left}},
		"no number":            {"HTTP/1.1 1+0 \r\n\r\n", ran{code: left}},
		"a head for ever":      {begun + strings.Repeat("a", 2*maxHead), ran{1, "", "lost the cradle daemon: its answer has no end\n"}},
	} {
		t.Run(name, func(t *testing.T) {
			dir, asked := daemon(t, c.answer)
			got := execute(t, []string{"CRADLE_RUN=" + dir, "LEFT=it"}, program, "exec", "box_1", "sh", "", "a b")
			if c.code == left {
				c.out = "left: exec|box_1|sh||a b it rm"
			}
			if got != c.ran {
				t.Errorf("%.300s, want %.300s", got, c.ran)
			}
			if want, got := "POST /cradle/v1/containers/box_1/exec 100-continue sh\x00\x00a b", <-asked; got != want {
				t.Errorf("asked %q, want %q", got, want)
			}
		})
	}
}

// A variable that is there twice is what it is for package os: the first.
func TestEnvironment(t *testing.T) {
	var env environment
	for _, word := range []string{"AB=0", "A", "A=1", "A=2", "=", ""} {
		env = append(env, &append([]byte(word), 0)[0])
	}
	for name, want := range map[string]string{"A": "1", "AB": "0", "B": "", "ABC": ""} {
		if got := env.get(name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
}

// What is sent may be longer than the buffer.
func TestExecOfLongWords(t *testing.T) {
	program := program(t)
	dir, asked := daemon(t, "HTTP/1.1 100 \r\n\r\nHTTP/1.1 200 \r\n\r\n"+record(Exit, "\x00"))
	word := strings.Repeat("0123456789", 10000)
	if got := execute(t, []string{"CRADLE_RUN=" + dir}, program, "exec", "a", word, word); got != (ran{}) {
		t.Errorf("%.300s", got)
	}
	if got := <-asked; !strings.HasSuffix(got, " "+word+"\x00"+word) {
		t.Errorf("asked for %d bytes: %.100q", len(got), got)
	}
}

func TestRun(t *testing.T) {
	const ok = "HTTP/1.1 200 OK\r\nConnection: close\r\nContainer: 4242\r\n\r\n"
	program := program(t)
	for name, c := range map[string]struct {
		answer string
		ran
	}{
		"exit code":            {ok + record(Exit, "\x07"), ran{7, "", ""}},
		"no image":             {"HTTP/1.1 404 Not Found\r\n\r\n{}", ran{code: left}},
		"no id":                {"HTTP/1.1 200 OK\r\n\r\n", ran{code: left}},
		"an id that is a path": {"HTTP/1.1 200 OK\r\nContainer: ../x\r\n\r\n", ran{code: left}},
		"an id that is long":   {"HTTP/1.1 200 OK\r\nContainer: " + strings.Repeat("a", 200) + "\r\n\r\n", ran{code: left}},
		"it is on its way out": {"", ran{code: left}},
		"it dies":              {ok + "\x01\x00", ran{125, "", "lost the cradle daemon: its answer has no end\n"}},
	} {
		t.Run(name, func(t *testing.T) {
			dir, asked := daemon(t, c.answer)
			args := []string{"run", "--rm", "-d", "--network", "none", "--name=a", "-e", "A=", "b/c:1", "sh", "", "-e"}
			got := execute(t, []string{"CRADLE_RUN=" + dir, "HOME=" + dir}, program, args...)
			if c.code == left {
				c.out = "left: " + strings.Join(args, "|") + "  rm"
			}
			if got != c.ran {
				t.Errorf("%s, want %s", got, c.ran)
			}
			if want, got := "POST /cradle/v1/run  rm\x00detach\x00network=none\x00name=a\x00env=A=\x00\x00b/c:1\x00sh\x00\x00-e", <-asked; got != want {
				t.Errorf("asked %q, want %q", got, want)
			}
		})
	}
}

func TestList(t *testing.T) {
	const ok = "HTTP/1.1 200 OK\r\n\r\n"
	program := program(t)
	for name, c := range map[string]struct {
		answer string
		ran
	}{
		"a list":         {ok + record(Stdout, "list\n") + record(Exit, "\x00"), ran{0, "list\n", ""}},
		"a wrong filter": {"HTTP/1.1 400 Bad Request\r\n\r\n{}", ran{code: left}},
		"it dies":        {ok, ran{1, "", "lost the cradle daemon: its answer has no end\n"}},
	} {
		t.Run(name, func(t *testing.T) {
			dir, asked := daemon(t, c.answer)
			args := []string{"ps", "-a", "--quiet", "-qa", "--no-trunc", "-f", "a=b", "--filter", "c", "--filter=d"}
			got := execute(t, []string{"CRADLE_RUN=" + dir, "HOME=" + dir}, program, args...)
			if c.code == left {
				c.out = "left: " + strings.Join(args, "|") + "  rm"
			}
			if got != c.ran {
				t.Errorf("%s, want %s", got, c.ran)
			}
			if want, got := "POST /cradle/v1/ps  all\x00quiet\x00all\x00quiet\x00no-trunc\x00filter=a=b\x00filter=c\x00filter=d", <-asked; got != want {
				t.Errorf("asked %q, want %q", got, want)
			}
		})
	}
}

func TestVersion(t *testing.T) {
	program := program(t)
	for _, flag := range []string{"--version", "-v"} {
		if got, want := execute(t, nil, program, flag), (ran{0, "cradle version 1.2, build abc\n", ""}); got != want {
			t.Errorf("%s: %s, want %s", flag, got, want)
		}
	}
}

// started starts a run, and returns when the daemon has been asked for it.
func started(t *testing.T, answers ...string) (cmd *exec.Cmd, stderr *bytes.Buffer, asked <-chan string) {
	t.Helper()
	program := program(t)
	dir, asked := daemon(t, answers...)
	cmd, stderr = exec.CommandContext(t.Context(), program, "run", "a"), new(bytes.Buffer)
	cmd.Env, cmd.Stderr = []string{"CRADLE_RUN=" + dir, "HOME=" + dir}, stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill() })
	<-asked
	return cmd, stderr, asked
}

// Signals go to the container, though the daemon be slow with one, and the third that asks for an end, ends the client.
func TestSignals(t *testing.T) {
	cmd, stderr, asked := started(t, "HTTP/1.1 200 OK\r\nContainer: 4242\r\n\r\n"+stays, "HTTP/1.1 204 No Content\r\n\r\n", stays)
	for _, s := range []syscall.Signal{syscall.SIGUSR1, syscall.SIGINT} {
		if err := cmd.Process.Signal(s); err != nil {
			t.Fatal(err)
		}
		if want, got := "POST /containers/4242/kill?signal="+map[bool]string{true: "2", false: "10"}[s == syscall.SIGINT]+"  ", <-asked; got != want {
			t.Fatalf("asked %q, want %q", got, want)
		}
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for { // those that come close together are one
		cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-ended:
			if cmd.ProcessState.ExitCode() != 1 || stderr.String() != "\ngot 3 SIGTERM/SIGINTs, forcefully exiting\n" {
				t.Errorf("%v, %q", cmd.ProcessState, stderr)
			}
			return
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// A signal that comes before there is a container is the program's own, if there is none.
func TestSignalBeforeThereIsAContainer(t *testing.T) {
	program := program(t)
	dir := t.TempDir()
	l, err := net.Listen("unix", filepath.Join(dir, "cradle.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	cmd := exec.CommandContext(t.Context(), program, "run", "a")
	cmd.Env = []string{"CRADLE_RUN=" + dir, "HOME=" + dir}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := http.ReadRequest(bufio.NewReader(c)); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	io.WriteString(c, "HTTP/1.1 404 Not Found\r\n\r\n")
	c.Close()
	_ = cmd.Wait()
	if status := cmd.ProcessState.Sys().(syscall.WaitStatus); !status.Signaled() || status.Signal() != syscall.SIGINT {
		t.Errorf("%v, want it ended by the signal", cmd.ProcessState)
	}
}

// A run whose output nobody takes says so; an exec is ended by the system, as programs are.
func TestOutputThatNobodyTakes(t *testing.T) {
	program := program(t)
	const begun, ok = "HTTP/1.1 100 Continue\r\n\r\n", "HTTP/1.1 200 OK\r\nContainer: 1\r\n\r\n"
	for answer, args := range map[string][]string{ok: {"run", "a"}, begun + ok: {"exec", "a", "b"}} {
		dir, _ := daemon(t, answer+record(Stdout, "out")+stays)
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		r.Close()
		var stderr bytes.Buffer
		cmd := exec.CommandContext(t.Context(), program, args...)
		cmd.Env, cmd.Stdout, cmd.Stderr = []string{"CRADLE_RUN=" + dir, "HOME=" + dir}, w, &stderr
		_ = cmd.Run()
		w.Close()
		if args[0] == "run" && (cmd.ProcessState.ExitCode() != exitOutput || stderr.String() != "write /dev/stdout: broken pipe\n") {
			t.Errorf("run: %v, %q", cmd.ProcessState, &stderr)
		}
		if args[0] == "exec" && cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGPIPE {
			t.Errorf("exec: %v, %q", cmd.ProcessState, &stderr)
		}
	}
}

// A configuration of docker's, or an environment that has a say, is for docker's library to read.
func TestRunWithConfiguration(t *testing.T) {
	program := program(t)
	dir, asked := daemon(t)
	home := t.TempDir()
	if err := os.MkdirAll(filepath.Join(home, ".docker"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(home, ".docker", "config.json"), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, env := range [][]string{
		{}, {"HOME=" + home}, {"DOCKER_CONFIG=" + home + "/.docker"}, {"HOME=/", "DOCKER_DEFAULT_PLATFORM=linux/arm64"},
		{"HOME=/" + strings.Repeat("a", 5000)},
	} {
		if r := execute(t, append(env, "CRADLE_RUN="+dir), program, "run", "a"); r.code != left || len(asked) > 0 {
			t.Errorf("%v: %+v", env, r)
		}
	}
	dir, asked = daemon(t, "")
	if execute(t, []string{"HOME=" + home, "DOCKER_CONFIG=" + home, "CRADLE_RUN=" + dir}, program, "run", "a"); len(asked) == 0 {
		t.Error("it looks for another file than docker's")
	}
}

// What is not done here does not even come to the daemon.
func TestLeftToOthers(t *testing.T) {
	program := program(t)
	dir, asked := daemon(t)
	for _, line := range []string{"", "exec", "exec a", "exec -i a true", "exec --help a b", "container exec a true", "exec a/b true", "exec ../x true",
		"run", "run --rm", "run -it a sh", "run -i a", "run --rm --timing a true", "run --network container:a b", "run --network name=a,alias=b c", "run --network",
		"run --name a/b c", "run --name= a", "run -e A b", "run -eA=b c", "run -e =b c", "run -- a", "run /dir", "run ./dir", "run ../dir", "run --rm=true a",
		"run -dit a", "run --env-file x a", "container run a", "create a", "run -e a", "run -e=A=b a", "ps --format x", "ps -l", "ps -n 1", "ps -s", "ps a",
		"ps -f", "ps --filter=", "ps -qf a=b", "ps --all=true", "-v a", "--version --help", "version", "exec a" + strings.Repeat(" a", maxArgs)} {
		if r := execute(t, []string{"CRADLE_RUN=" + dir, "HOME=/"}, program, strings.Fields(line)...); r.code != left || len(asked) > 0 {
			t.Errorf("%q: %+v", line, r)
		}
	}
	for _, env := range [][]string{{"CRADLE_RUN=" + t.TempDir()}, {"CRADLE_RUN=" + dir, "CRADLE_HOST=tcp://far:1"}, {"CRADLE_RUN=." + dir}, {"CRADLE_RUN=/" + strings.Repeat("a", 200)}} {
		if r := execute(t, env, program, "exec", "a", "true"); r.code != left || len(asked) > 0 {
			t.Errorf("%q: %+v", env, r)
		}
	}
	// Without standard streams the connection would be one of them.
	if r := execute(t, []string{"CRADLE_RUN=" + dir}, "/bin/sh", "-c", "exec "+program+" exec a b >&-"); r.code != left {
		t.Errorf("%+v", r)
	}
}

// There is no runtime yet, so nothing of it may be called but what needs nothing itself. Panics would end the program as
// well as the runtime could.
func TestNeedsNoRuntime(t *testing.T) {
	out, err := exec.Command("go", "build", "-gcflags=-S", ".").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	calls := regexp.MustCompile(`\t(?:CALL|JMP)\t([^\s(]*[^\s]*)\(SB\)`).FindAllStringSubmatch(string(out), -1)
	if len(calls) < 50 {
		t.Errorf("%d calls found", len(calls))
	}
	allowed := []string{"runtime.memequal", "runtime.memmove", "runtime.morestack", "runtime.morestack_noctxt", "runtime.panicwrap",
		"syscall.RawSyscall", "syscall.RawSyscall6", "syscall.Errno.Error"}
	for _, call := range calls {
		name := call[1]
		own := strings.Contains(name, "cmd/cradle/front.")
		bounds := strings.HasPrefix(name, "runtime.panicBounds") || strings.HasPrefix(name, "runtime.panicshift") || strings.HasPrefix(name, "runtime.panicunsafe")
		if !own && !bounds && !slices.Contains(allowed, name) {
			t.Errorf("it calls %s", name)
		}
	}
}
