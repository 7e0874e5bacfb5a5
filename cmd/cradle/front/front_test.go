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

// What is not done here does not even come to the daemon.
func TestLeftToOthers(t *testing.T) {
	for _, line := range []string{"", "exec", "exec a", "exec -i a true", "exec --help a b", "run a true", "container exec a true", "exec a/b true", "exec ../x true"} {
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
