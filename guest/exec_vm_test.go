package guest

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/cradlevm/cradle/api"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func (v *testVM) startBox(r *api.CreateRequest) api.ProcessRef {
	v.t.Helper()
	ref := api.ProcessRef{ID: r.ID}
	v.call(api.MethodCreate, r, nil)
	v.t.Cleanup(func() { v.try(api.MethodDelete, ref, nil) })
	v.call(api.MethodStart, ref, nil)
	return ref
}

func (v *testVM) execIn(id, exec string, change func(*api.ExecRequest), args ...string) ended {
	v.t.Helper()
	r := &api.ExecRequest{ID: id, Exec: exec, Args: args}
	if change != nil {
		change(r)
	}
	var e ended
	if e.err = v.try(api.MethodExec, r, nil); e.err != nil {
		return e
	}
	ref := api.ProcessRef{ID: id, Exec: exec}
	out, errs := v.output(ref)
	v.call(api.MethodWait, ref, &e.status)
	v.call(api.MethodDelete, ref, nil)
	e.stdout, e.stderr = string(out), string(errs)
	return e
}

func testExec(t *testing.T, v *testVM, box []api.Disk) {
	v.startBox(&api.CreateRequest{ID: "host", Rootfs: api.Rootfs{Layers: box}, Spec: dockerSpec("sleep", "1000")})
	e := v.execIn("host", "a", nil, "sh", "-c", "echo $(ps -o pid,comm | grep sleep); hostname; cat /proc/self/cgroup; exit 3")
	if e.stdout != "1 sleep\nbox\n0::/\n" || e.status.Code != 3 {
		t.Errorf("%+v: %v", e, e.err)
	}
	if e := v.execIn("host", "a", func(r *api.ExecRequest) { r.User = "app" }, "id", "-u"); e.stdout != "1000\n" {
		t.Errorf("%+v: %v", e, e.err)
	}
	const bound = "grep CapBnd /proc/self/status; echo $(cat /proc/self/oom_score_adj) $(hostname)"
	own := v.execIn("host", "a", nil, "sh", "-c", bound).stdout
	all := &specs.LinuxCapabilities{Bounding: []string{"CAP_CHOWN", "CAP_SYS_ADMIN"}}
	wide := v.execIn("host", "a", func(r *api.ExecRequest) { r.Capabilities = all }, "sh", "-c", bound).stdout
	if again := v.execIn("host", "a", nil, "sh", "-c", bound).stdout; firstLine(again) != firstLine(own) || firstLine(wide) != "CapBnd:\t0000000000200001" {
		t.Errorf("bounding sets: %q, of one with its own %q, then %q", own, wide, again)
	}
	if !strings.HasSuffix(own, "\n0 box\n") || !strings.HasSuffix(wide, "\n0 box\n") {
		t.Errorf("%q, %q", own, wide)
	}
	if e := v.execIn("host", "a", nil, "nothing"); code(e.err) != api.CodeCommandNotFound {
		t.Errorf("%+v: %v", e, e.err)
	}
	if e := v.execIn("host", "a", func(r *api.ExecRequest) { r.Cwd = "/none" }, "true"); e.err == nil {
		t.Errorf("%+v: %v", e, e.err)
	}
	// A background process that holds the pipe does not hold the end of the output.
	begin := time.Now()
	if e := v.execIn("host", "a", nil, "sh", "-c", "sleep 30 & echo early"); e.stdout != "early\n" || time.Since(begin) > 10*time.Second {
		t.Errorf("%+v after %v", e, time.Since(begin))
	}
	testOneCall(t, v)
	v.call(api.MethodExec, &api.ExecRequest{ID: "host", Exec: "k", Args: []string{"sleep", "100"}}, nil)
	ref := api.ProcessRef{ID: "host", Exec: "k"}
	v.call(api.MethodSignal, api.SignalRequest{ProcessRef: ref, Signal: 9}, nil)
	var s api.ExitStatus
	if v.call(api.MethodWait, ref, &s); s.Code != 137 || s.OOMKilled {
		t.Errorf("%+v", s)
	}
	// The first process's end ends them all.
	v.call(api.MethodExec, &api.ExecRequest{ID: "host", Exec: "l", Args: []string{"sleep", "100"}}, nil)
	v.call(api.MethodSignal, api.SignalRequest{ProcessRef: api.ProcessRef{ID: "host"}, Signal: 9}, nil)
	if v.call(api.MethodWait, api.ProcessRef{ID: "host", Exec: "l"}, &s); s.Code != 137 {
		t.Errorf("%+v", s)
	}
	if e := v.execIn("host", "m", nil, "true"); code(e.err) != api.CodeFailedPrecondition {
		t.Errorf("%+v: %v", e, e.err)
	}
}

// testOneCall: a process is one call, from its start to its being forgotten.
func testOneCall(t *testing.T, v *testVM) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var started api.StartResult
	s, err := v.client.Stream(ctx, api.MethodExec,
		&api.ExecRequest{ID: "host", Exec: "one", Args: []string{"sh", "-c", "echo words; exit 7"}}, &started)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if started.PID < 2 {
		t.Errorf("process id %d", started.PID)
	}
	want := []byte("\x01\x00\x00\x00\x00\x00\x00\x06words\n\x04\x00\x00\x00\x00\x00\x00\x0a\x07\x00")
	got, err := io.ReadAll(s)
	if err != nil || len(got) != len(want)+8 || !bytes.HasPrefix(got, want) {
		t.Errorf("%q, %v", got, err)
	}
	ref := api.ProcessRef{ID: "host", Exec: "one"}
	if err := v.try(api.MethodSignal, api.SignalRequest{ProcessRef: ref}, nil); err != nil {
		t.Errorf("it has been forgotten before its time: %v", err)
	}
	if err := s.Last(binary.BigEndian.AppendUint64(nil, api.Forget)); err != nil {
		t.Error(err)
	}
	for code(v.try(api.MethodSignal, api.SignalRequest{ProcessRef: ref}, nil)) != api.CodeNotFound {
		if ctx.Err() != nil {
			t.Fatal("it has not been forgotten")
		}
	}
}

func testTerminal(t *testing.T, v *testVM, box []api.Disk) {
	r := &api.CreateRequest{ID: "tty", Rootfs: api.Rootfs{Layers: box}, StdinOpen: true,
		Spec: dockerSpec("sh", "-c", "stty size; tty; ls -l /dev/console | cut -c1; read x; stty size; echo got $x; cat; echo end")}
	r.Spec.Process.Terminal = true
	r.Spec.Process.ConsoleSize = &specs.Box{Height: 33, Width: 111}
	ref := v.startBox(r)
	v.call(api.MethodResize, api.ResizeRequest{ProcessRef: ref, Width: 99, Height: 44}, nil)
	s, err := v.client.Stream(context.Background(), api.MethodStdin, ref, nil)
	if err != nil {
		t.Fatal(err)
	}
	s.Write([]byte("line\n"))
	s.CloseWrite()
	out, _ := v.output(ref)
	got := strings.ReplaceAll(string(out), "\r", "")
	if !strings.Contains(got, "/dev/pts/0\n") || !strings.HasSuffix(got, "44 99\ngot line\nend\n") {
		t.Errorf("%q", got)
	}
}

func testStdin(t *testing.T, v *testVM, box []api.Disk) {
	size := 64 << 20
	if testing.Short() {
		size = 8 << 20
	}
	ref := v.startBox(&api.CreateRequest{ID: "cat", Rootfs: api.Rootfs{Layers: box}, Spec: dockerSpec("cat"), StdinOpen: true})
	s, err := v.client.Stream(context.Background(), api.MethodStdin, ref, nil)
	if err != nil {
		t.Fatal(err)
	}
	data := make([]byte, size)
	for i := 0; i+8 <= len(data); i += 8 {
		binary.LittleEndian.PutUint64(data[i:], uint64(i)*0x9e3779b97f4a7c15)
	}
	begin := time.Now()
	go func() {
		s.Write(data)
		s.CloseWrite()
	}()
	out, _ := v.output(ref)
	if !bytes.Equal(out, data) {
		t.Errorf("%d of %d bytes came back, or others", len(out), len(data))
	}
	t.Logf("%d MiB through cat in %v", size>>20, time.Since(begin).Round(time.Millisecond))
}

// testOutputSurvives: what was written while no host listened, or before a session broke, is not lost.
func testOutputSurvives(t *testing.T, v *testVM, box []api.Disk) {
	ref := v.startBox(&api.CreateRequest{ID: "log", Rootfs: api.Rootfs{Layers: box}, Spec: dockerSpec("seq", "1", "400000")})
	s, err := v.client.Stream(context.Background(), api.MethodOutput, api.OutputRequest{ProcessRef: ref}, nil)
	if err != nil {
		t.Fatal(err)
	}
	first := make([]byte, 100003)
	if _, err := io.ReadFull(s, first); err != nil {
		t.Fatal(err)
	}
	v.client.Close()
	v.dial()
	// Nothing was acknowledged: it can all be had again, from any offset on.
	s, err = v.client.Stream(context.Background(), api.MethodOutput, api.OutputRequest{ProcessRef: ref, Offset: 50000}, nil)
	if err != nil {
		t.Fatal(err)
	}
	out, errs, err := readRecords(struct {
		io.Reader
		io.Writer
	}{io.MultiReader(bytes.NewReader(first[:50000]), s), s}, 0)
	if err != nil || len(errs) > 0 {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	if len(lines) != 400000 || lines[399999] != "400000" || lines[200000] != "200001" {
		t.Errorf("%d lines, last %q", len(lines), lines[len(lines)-1])
	}
	if err := v.try(api.MethodPing, nil, nil); err != nil {
		t.Error(err)
	}
	_, err = v.client.Stream(context.Background(), api.MethodOutput, api.OutputRequest{ProcessRef: ref}, nil)
	if code(err) != api.CodeFailedPrecondition {
		t.Errorf("old offset: %v", err)
	}
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}
