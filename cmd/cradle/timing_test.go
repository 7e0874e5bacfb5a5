package main

import (
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestTiming(t *testing.T) {
	h := newHouse(t)
	socket := serveFake(t, &fakeNode{ExitCode: 7})
	host := []string{envHost + "=" + socket}
	r := h.cradle(t, host, "run", "--timing", "--rm", "busybox", "true")
	if r.code != 7 || r.stdout != "hello\n" {
		t.Errorf("code %d, output %q", r.code, r.stdout)
	}
	for _, want := range []string{
		`client  client `, `client  create`, `client  attach`, `client  start`, `client  first byte`, `client  wait`, `total \(take\)`,
	} {
		if !regexp.MustCompile(want).MatchString(r.stderr) {
			t.Errorf("the table lacks %q:\n%s", want, r.stderr)
		}
	}
	for name, args := range map[string][]string{
		"one word":  {"run", "--timing=svg:FILE", "--rm", "busybox", "true"},
		"two words": {"run", "--timing=svg", "FILE", "--rm", "busybox", "true", "--timing=svg", "x"},
		"container": {"container", "run", "--rm", "--timing=svg", "FILE", "busybox"},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "t.svg")
			for i := range args {
				args[i] = strings.Replace(args[i], "FILE", file, 1)
			}
			r := h.cradle(t, host, args...)
			if r.code != 7 || r.stderr != "" {
				t.Errorf("code %d, %q", r.code, r.stderr)
			}
			f, err := os.Open(file)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			drawn := false
			for d := xml.NewDecoder(f); ; {
				token, err := d.Token()
				if errors.Is(err, io.EOF) {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				text, ok := token.(xml.CharData)
				drawn = drawn || ok && string(text) == "create"
			}
			if !drawn {
				t.Error("the drawing does not have the request to create")
			}
		})
	}
	for _, args := range [][]string{{"--timing=chart", "busybox"}, {"--timing=svg:", "busybox"}, {"--timing=svg", "./file"}} {
		if r := h.cradle(t, host, append([]string{"run"}, args...)...); r.code == 0 || r.stderr == "" {
			t.Errorf("%q: code %d, %q", args, r.code, r.stderr)
		}
	}
	// What is wrong with the file is said before anything runs.
	untouched := &fakeNode{}
	host = []string{envHost + "=" + serveFake(t, untouched)}
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"--timing=svg:/nonexistent/dir/file", "busybox"}, "no such file or directory"},
		{[]string{"--timing=svg", "/nonexistent/dir/file", "busybox"}, "no such file or directory"},
		{[]string{"--timing=svg", "--rm", "busybox", "echo", "hi"}, `"busybox" does not look like one`},
		{[]string{"--timing", "svg", "x.svg", "busybox", "true"}, "with the equals sign"},
	} {
		if r := h.cradle(t, host, append([]string{"run"}, c.args...)...); r.code != 125 || !strings.Contains(r.stderr, c.want) {
			t.Errorf("%q: code %d, %q", c.args, r.code, r.stderr)
		}
	}
	if asked := untouched.requests(); slices.ContainsFunc(asked, func(r string) bool { return strings.HasSuffix(r, "/containers/create") }) {
		t.Errorf("%q", asked)
	}
}

// All the time there was is somebody's, and the daemon's phases lie where the clock says.
func TestSpans(t *testing.T) {
	began := time.Unix(1000, 0)
	at := func(n int) time.Time { return began.Add(time.Duration(n) * time.Millisecond) }
	tm := &timing{began: began, marks: []mark{{"client", at(5)}, {"start", at(50)}, {"end", at(60)}}}
	daemon := &daemonStart{Began: at(6)}
	for _, name := range []string{"prepared", "plug", "create", "exec"} {
		daemon.Phases = append(daemon.Phases, struct {
			Name string
			End  time.Duration
		}{name, 20 * time.Millisecond})
	}
	total := time.Duration(0)
	var names []string
	for _, s := range tm.spans(daemon) {
		if s.At != total {
			t.Errorf("%+v does not begin at %s", s, total)
		}
		total += s.Took
		names = append(names, s.Name)
	}
	if total != 60*time.Millisecond || strings.Join(names, " ") != "client take plug mount exec start end" {
		t.Errorf("%s: %q", total, names)
	}
	daemon.Began = at(-1000) // another machine's clock
	if n := len(tm.spans(daemon)); n != 3 {
		t.Errorf("%d spans", n)
	}
}

func FuzzRequestName(f *testing.F) {
	f.Add([]byte("POST /v1.56/containers/abc/start?x=1 HTTP/1.1\r\nHost: x\r\n"))
	f.Add([]byte("hello\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		name, container := requestName(b)
		if strings.ContainsAny(name+container, "/ \n") {
			t.Errorf("%q gives %q, %q", b, name, container)
		}
	})
}
