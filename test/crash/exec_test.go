package crash

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"time"
)

// call asks the daemon's API, as no command line does. A daemon is there: it runs, or is started. An answer of another
// status than 2xx is an error, and killed says whether the call was cut short.
func (h *crashing) call(method, path string, body, into any) (killed bool, err error) {
	before := h.gen.Load() // a kill may come right after the version's answer
	if r := h.do("version"); r.code != 0 {
		return r.killed, fmt.Errorf("version: %+v", r)
	}
	err = h.request(method, path, body, into)
	return before%2 == 1 || h.gen.Load() != before, err
}

func (h *crashing) request(method, path string, body, into any) error {
	raw, err := json.Marshal(body)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, method, "http://cradle/v1.47"+path, bytes.NewReader(raw))
	if err != nil {
		return err
	}
	r.Header.Set("Content-Type", "application/json")
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", h.Socket())
	}}
	defer transport.CloseIdleConnections()
	answer, err := transport.RoundTrip(r)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(io.LimitReader(answer.Body, 1<<20))
	if err != nil {
		return err
	}
	if answer.StatusCode/100 != 2 {
		return fmt.Errorf("%s %s: %s: %s", method, path, answer.Status, text)
	}
	if into == nil || len(text) == 0 {
		return nil
	}
	return json.Unmarshal(text, into)
}

// persist is call until no daemon is killed under it; then it has to succeed.
func (h *crashing) persist(method, path string, body, into any) error {
	for {
		killed, err := h.call(method, path, body, into)
		if err == nil || !killed {
			return err
		}
	}
}

type execState struct {
	Running       bool
	ExitCode      *int
	Pid           int
	ProcessConfig struct {
		Entrypoint string   `json:"entrypoint"`
		Arguments  []string `json:"arguments"`
	}
}

// createExec makes an exec of a shell script; what a kill cuts short is made again.
func (h *crashing) createExec(container, script string) (id string, err error) {
	var made struct{ ID string }
	err = h.persist("POST", "/containers/"+container+"/exec", map[string]any{
		"Cmd": []string{"sh", "-c", script}, "AttachStdout": true,
	}, &made)
	return made.ID, err
}

// startExec starts it detached. A start that a kill cuts short is tried again until the exec says that it has begun.
func (h *crashing) startExec(id string) error {
	for {
		killed, err := h.call("POST", "/exec/"+id+"/start", map[string]any{"Detach": true}, nil)
		if err == nil || !killed {
			return err
		}
		var st execState
		if err := h.persist("GET", "/exec/"+id+"/json", nil, &st); err != nil {
			return err
		}
		if st.Running || st.ExitCode != nil {
			return nil
		}
	}
}

// waitExec waits for its end: its code and all else that inspect says of it are right.
func (h *crashing) waitExec(id, script string, code int) error {
	for begun := time.Now(); time.Since(begun) < commandLimit; time.Sleep(100 * time.Millisecond) {
		var st execState
		if err := h.persist("GET", "/exec/"+id+"/json", nil, &st); err != nil {
			return err
		}
		if st.ProcessConfig.Entrypoint != "sh" || !slices.Equal(st.ProcessConfig.Arguments, []string{"-c", script}) || st.Pid <= 1 {
			return fmt.Errorf("exec %s: %+v", id, st)
		}
		if st.Running {
			continue
		}
		if st.ExitCode == nil || *st.ExitCode != code {
			return fmt.Errorf("exec %s: exit code %v, want %d", id, st.ExitCode, code)
		}
		return nil
	}
	return fmt.Errorf("exec %s has not ended after %v", id, commandLimit)
}

// execScript prints more than the agent keeps, with nobody attached, until it finds a file.
const execScript = `x=$(head -c 8000 /dev/zero | tr '\0' x); while [ ! -e /stop-exec ]; do echo $x; sleep 0.05; done; exit 77`

// beginExec starts what runs in a steady container as long as the daemons are killed.
func beginExec(h *crashing, i int) (id string, err error) {
	if id, err = h.createExec(steadyName(i), execScript); err == nil {
		err = h.startExec(id)
	}
	return id, err
}

// endExec ends it, and looks at how it ended.
func endExec(h *crashing, i int, id string) error {
	out, err := h.must("", "inspect", "-f", "{{json .ExecIDs}}", steadyName(i))
	if err != nil {
		return err
	}
	var ids []string
	if err := json.Unmarshal([]byte(out), &ids); err != nil || !slices.Contains(ids, id) {
		return fmt.Errorf("%s has the execs %s, not %s: %w", steadyName(i), out, id, err)
	}
	if _, err := h.must("", "exec", steadyName(i), "touch", "/stop-exec"); err != nil {
		return err
	}
	return h.waitExec(id, execScript, 77)
}
