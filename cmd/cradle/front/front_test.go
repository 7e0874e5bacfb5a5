package front

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// daemon answers one request with what is said to it: a part before the request's body is asked for, and one after.
func daemon(t *testing.T, before, after string) (run string, asked <-chan string) {
	t.Helper()
	run = t.TempDir()
	l, err := net.Listen("unix", filepath.Join(run, "cradle.sock"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	got := make(chan string, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		r, err := http.ReadRequest(bufio.NewReader(c))
		if err != nil {
			got <- err.Error()
			return
		}
		body, _ := io.ReadAll(r.Body)
		got <- r.Method + " " + r.URL.Path + " " + r.Header.Get("Expect") + " " + string(body)
		io.WriteString(c, before+after)
	}()
	return run, got
}

func TestExec(t *testing.T) {
	const begun, ok = "HTTP/1.1 100 Continue\r\n\r\n", "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"
	record := func(stream byte, text string) string {
		return string([]byte{stream, 0, 0, 0, byte(len(text) >> 24), byte(len(text) >> 16), byte(len(text) >> 8), byte(len(text))}) + text
	}
	long := strings.Repeat("word ", 20000)
	for name, c := range map[string]struct {
		before, after string
		code          int
		done          bool
		out, err      string
	}{
		"exit code":            {begun + ok, record(Exit, "\x07"), 7, true, "", ""},
		"output":               {begun + ok, record(Stdout, "out") + record(Stderr, "err") + record(Stdout, long) + record(Exit, "\x00"), 0, true, "out" + long, "err"},
		"no container":         {begun, "HTTP/1.1 404 Not Found\r\n\r\n{}", 0, false, "", ""},
		"an older daemon":      {"", "HTTP/1.1 404 Not Found\r\n\r\n", 0, false, "", ""},
		"it is on its way out": {"", "", 0, false, "", ""},
		"it dies":              {begun, "", 1, true, "", "lost the cradle daemon: its answer has no end\n"},
		"it dies later":        {begun + ok, record(Stdout, "out") + "\x01\x00", 1, true, "out", "lost the cradle daemon: its answer has no end\n"},
		"nonsense":             {begun + ok, "\x01\x00\x00\x00\xff\xff\xff\xff", 1, true, "", "lost the cradle daemon: it answers nonsense\n"},
		"no code":              {begun + ok, record(Exit, ""), 1, true, "", "lost the cradle daemon: it answers nonsense\n"},
		"a head for ever":      {begun, strings.Repeat("a", 2*maxHead), 1, true, "", "lost the cradle daemon: its answer has no end\n"},
	} {
		t.Run(name, func(t *testing.T) {
			run, asked := daemon(t, c.before, c.after)
			var files [2]*os.File
			for i := range files {
				f, err := os.CreateTemp(t.TempDir(), "")
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				files[i] = f
			}
			env := map[string]string{"CRADLE_RUN": run}
			code, done := Run([]string{"exec", "box_1", "sh", "", "a b"}, func(k string) string { return env[k] }, 0, files[0], files[1])
			if code != c.code || done != c.done {
				t.Errorf("code %d, done %v", code, done)
			}
			if want, got := "POST /cradle/v1/containers/box_1/exec 100-continue sh\x00\x00a b", <-asked; got != want {
				t.Errorf("asked %q, want %q", got, want)
			}
			for i, want := range []string{c.out, c.err} {
				if got, err := os.ReadFile(files[i].Name()); string(got) != want {
					t.Errorf("stream %d: %.100q, want %.100q, %v", i+1, got, want, err)
				}
			}
		})
	}
}

func TestRun(t *testing.T) {
	const ok = "HTTP/1.1 200 OK\r\nConnection: close\r\nContainer: 4242\r\n\r\n"
	for name, c := range map[string]struct {
		answer string
		code   int
		done   bool
		err    string
	}{
		"exit code":            {ok + "\x04\x00\x00\x00\x00\x00\x00\x01\x07", 7, true, ""},
		"no image":             {"HTTP/1.1 404 Not Found\r\n\r\n{}", 0, false, ""},
		"no id":                {"HTTP/1.1 200 OK\r\n\r\n", 0, false, ""},
		"an id that is a path": {"HTTP/1.1 200 OK\r\nContainer: ../x\r\n\r\n", 0, false, ""},
		"it is on its way out": {"", 0, false, ""},
		"it dies":              {ok + "\x01\x00", 125, true, "lost the cradle daemon: its answer has no end\n"},
	} {
		t.Run(name, func(t *testing.T) {
			run, asked := daemon(t, c.answer, "")
			out, err := os.CreateTemp(t.TempDir(), "")
			if err != nil {
				t.Fatal(err)
			}
			defer out.Close()
			env := map[string]string{"CRADLE_RUN": run, "HOME": run}
			args := []string{"run", "--rm", "-d", "--network", "none", "--name=a", "-e", "A=", "b/c:1", "sh", "", "-e"}
			code, done := Run(args, func(k string) string { return env[k] }, 0, out, out)
			if code != c.code || done != c.done {
				t.Errorf("code %d, done %v", code, done)
			}
			if want, got := "POST /cradle/v1/run  rm\x00detach\x00network=none\x00name=a\x00env=A=\x00\x00b/c:1\x00sh\x00\x00-e", <-asked; got != want {
				t.Errorf("asked %q, want %q", got, want)
			}
			if got, err := os.ReadFile(out.Name()); string(got) != c.err {
				t.Errorf("it says %q, want %q, %v", got, c.err, err)
			}
		})
	}
}

// A configuration of docker's, or an environment that has a say, is for docker's library to read.
func TestRunWithConfiguration(t *testing.T) {
	home := t.TempDir()
	if err := os.MkdirAll(filepath.Join(home, ".docker"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(home, ".docker", "config.json"), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, env := range []map[string]string{
		{}, {"HOME": home}, {"DOCKER_CONFIG": filepath.Join(home, ".docker")}, {"HOME": "/", "DOCKER_DEFAULT_PLATFORM": "linux/arm64"},
	} {
		if !configured(func(k string) string { return env[k] }) {
			t.Errorf("%v: nothing is configured", env)
		}
	}
	if configured(func(k string) string { return map[string]string{"HOME": home, "DOCKER_CONFIG": home}[k] }) {
		t.Error("it looks for another file than docker's")
	}
}

// What is not done here does not even come to the daemon.
func TestLeftToOthers(t *testing.T) {
	for _, line := range []string{"", "exec", "exec a", "exec -i a true", "exec --help a b", "container exec a true", "exec a/b true", "exec ../x true",
		"run", "run --rm", "run -it a sh", "run -i a", "run --rm --timing a true", "run --network container:a b", "run --network name=a,alias=b c", "run --network",
		"run --name a/b c", "run --name= a", "run -e A b", "run -eA=b c", "run -e =b c", "run -- a", "run /dir", "run ./dir", "run ../dir", "run --rm=true a",
		"run -dit a", "run --env-file x a", "container run a", "create a", "run -e a", "run -e=A=b a"} {
		var args []string
		if line != "" {
			args = strings.Split(line, " ")
		}
		env := func(string) string { t.Errorf("%q is looked into", line); return "" }
		if _, done := Run(args, env, 0, nil, nil); done {
			t.Errorf("%q is done", line)
		}
	}
	none := map[string]string{"CRADLE_RUN": t.TempDir()}
	if _, done := Run([]string{"exec", "a", "true"}, func(k string) string { return none[k] }, 0, nil, nil); done {
		t.Error("done without a daemon")
	}
}
