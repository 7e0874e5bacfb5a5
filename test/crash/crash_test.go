package crash

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// knob reads a number from the environment.
func knob(t *testing.T, name string, fallback int) int {
	t.Helper()
	v := os.Getenv(name)
	if v == "" {
		return fallback
	}
	n, err := strconv.Atoi(v)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

// maxPause is the longest life of a daemon before it is killed, longPause that of every fourth one: long enough for
// things to come to their ends in between.
const (
	maxPause  = 3 * time.Second
	longPause = 10 * time.Second
)

// While containers print numbered lines, execs print for nobody, and others come and go, the daemon is killed
// CRADLE_CRASH_ROUNDS times, at moments that CRADLE_CRASH_SEED decides. Then every line is there once and in order, every
// exit code right, that of an exec too, and nothing is left over.
func TestKilledDaemons(t *testing.T) {
	rounds, steady := knob(t, "CRADLE_CRASH_ROUNDS", 20), knob(t, "CRADLE_CRASH_CONTAINERS", 10)
	seed := uint64(knob(t, "CRADLE_CRASH_SEED", int(time.Now().UnixNano()&0xffffff)))
	t.Logf("CRADLE_CRASH_SEED=%d CRADLE_CRASH_ROUNDS=%d CRADLE_CRASH_CONTAINERS=%d", seed, rounds, steady)
	h := newHouse(t)
	for i := range steady {
		if _, err := h.must("", "run", "-d", "-m", "64m", "--name", steadyName(i), "busybox", "sh", "-c",
			fmt.Sprintf("trap 'echo end; exit %d' TERM; i=0; while :; do i=$((i+1)); echo $i; sleep 0.2; done", steadyCode(i))); err != nil {
			t.Fatal(err)
		}
	}
	execs := make([]string, min(steady, 3))
	for i := range execs {
		id, err := beginExec(h, i)
		if err != nil {
			t.Fatal(err)
		}
		execs[i] = id
	}
	var stop atomic.Bool
	var workers sync.WaitGroup
	tally := &tally{counts: map[string]int{}}
	for w := range 2 {
		workers.Go(func() {
			g := guests{house: h, rand: rand.New(rand.NewPCG(seed, uint64(w)+1)), worker: w, steady: steady, tally: tally}
			for !stop.Load() {
				if err := g.comeAndGo(); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	begun := time.Now()
	r := rand.New(rand.NewPCG(seed, 0))
	for kills := 0; kills < rounds && !t.Failed(); {
		limit := maxPause
		if kills%4 == 3 {
			limit = longPause
		}
		time.Sleep(time.Duration(r.Int64N(int64(limit)))) // the moment is the test
		if h.killDaemon() {
			kills++
		} else {
			h.do("version")
		}
	}
	stop.Store(true)
	workers.Wait()
	t.Logf("%d kills in %v; came and went: %v", rounds, time.Since(begun).Round(time.Second), tally.counts)
	for i, id := range execs {
		if err := endExec(h, i, id); err != nil {
			t.Error(err)
		}
	}
	lines := 0
	for i := range steady {
		n, err := checkSteady(h, i)
		if err != nil {
			t.Error(err)
		}
		lines += n
	}
	t.Logf("%d lines, each once", lines)
	if err := removeUnstarted(h, tally.counts["run cut"]); err != nil {
		t.Error(err)
	}
	if out, err := h.must("", "ps", "-aq"); err != nil || out != "" {
		t.Errorf("containers are left: %q, %v", out, err)
	}
	// What was started after the last kill has made the pool keep machines ready: they end with their daemon.
	if err := h.EndDaemon(commandLimit); err != nil {
		t.Error(err)
	}
	if left := h.leftovers(); len(left) > 0 {
		t.Errorf("left over:\n%s", strings.Join(left, "\n"))
	}
}

// removeUnstarted removes what a `run --rm` leaves that was cut short between its create and its start: a container that
// never ran, which the next daemon keeps as it keeps one made with `create --rm`.
func removeUnstarted(h *crashing, most int) error {
	out, err := h.must("", "ps", "-aq", "--filter", "status=created")
	if err != nil {
		return err
	}
	left := strings.Fields(out)
	if len(left) > most {
		return fmt.Errorf("%d containers were never started, by %d runs that were cut short", len(left), most)
	}
	for _, id := range left {
		if _, err := h.must("No such container", "rm", id); err != nil {
			return err
		}
	}
	return nil
}

func steadyName(i int) string { return fmt.Sprintf("steady%d", i) }

func steadyCode(i int) int { return 40 + i }

// checkSteady stops a container that prints lines, and counts them.
func checkSteady(h *crashing, i int) (int, error) {
	name := steadyName(i)
	if out, err := h.must("", "inspect", "-f", "{{.State.Status}} {{.State.Error}}", name); err != nil || out != "running" {
		return 0, fmt.Errorf("%s before its stop: %q, %w", name, out, err)
	}
	if _, err := h.must("", "stop", "-t", "60", name); err != nil {
		return 0, err
	}
	code, err := h.must("", "wait", name)
	if err != nil || code != strconv.Itoa(steadyCode(i)) {
		return 0, fmt.Errorf("%s: exit code %s, want %d, %w", name, code, steadyCode(i), err)
	}
	out, err := h.must("", "logs", name)
	if err != nil {
		return 0, err
	}
	lines := strings.Split(out, "\n")
	last := len(lines) - 1
	for k, line := range lines[:last] {
		if line != strconv.Itoa(k+1) {
			return 0, fmt.Errorf("%s: line %d of %d is %q", name, k+1, last, line)
		}
	}
	if lines[last] != "end" {
		return 0, fmt.Errorf("%s: the last line is %q", name, lines[last])
	}
	_, err = h.must("No such container", "rm", name)
	return last, err
}

// tally counts what was done, and what came through without a kill.
type tally struct {
	mu     sync.Mutex
	counts map[string]int
}

func (t *tally) add(what string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.counts[what]++
}

// guests is one worker that has containers come and go.
type guests struct {
	house          *crashing
	rand           *rand.Rand
	worker, steady int
	made           int
	tally          *tally
}

// comeAndGo does one thing. What a kill cuts short may fail; what no kill cuts short may not, and what was begun ends
// with the right code in any case.
func (g *guests) comeAndGo() error {
	code := g.rand.IntN(120)
	switch g.rand.IntN(5) {
	case 0:
		r := g.house.do("run", "--rm", "-m", "64m", "busybox", "sh", "-c", fmt.Sprintf("echo out; exit %d", code))
		if r.killed {
			g.tally.add("run cut")
			return nil
		}
		g.tally.add("run")
		if r.code != code || r.out != "out" {
			return fmt.Errorf("run, exit %d: %+v", code, r)
		}
		return nil
	case 1:
		r := g.house.do("exec", steadyName(g.rand.IntN(g.steady)), "sh", "-c", fmt.Sprintf("echo out; exit %d", code))
		if r.killed {
			g.tally.add("exec cut")
			return nil
		}
		g.tally.add("exec")
		if r.code != code || r.out != "out" {
			return fmt.Errorf("exec, exit %d: %+v", code, r)
		}
		return nil
	case 2:
		script := fmt.Sprintf("echo out; sleep %d; exit %d", g.rand.IntN(2), code)
		id, err := g.house.createExec(steadyName(g.rand.IntN(g.steady)), script)
		if err == nil {
			err = g.house.startExec(id)
		}
		if err == nil {
			err = g.house.waitExec(id, script, code)
		}
		g.tally.add("exec -d")
		return err
	case 3:
		return g.detached(fmt.Sprintf("echo out; sleep %d; exit %d", g.rand.IntN(3), code), code, "wait")
	default:
		return g.detached(fmt.Sprintf("trap 'exit %d' TERM; echo out; while :; do sleep 0.1; done", code), code, "stop", "-t", "60")
	}
}

// detached runs a container in the background and ends it with a command; its code and output are right after it, and it
// can be removed.
func (g *guests) detached(script string, code int, end ...string) error {
	g.made++
	name := fmt.Sprintf("guest%d-%d", g.worker, g.made)
	r := g.house.do("run", "-d", "-m", "64m", "--name", name, "busybox", "sh", "-c", script)
	switch {
	case r.code == 0:
		g.tally.add("run -d, " + end[0])
		if end[0] == "stop" { // not before it listens
			if err := g.printed(name); err != nil {
				return err
			}
		}
		if _, err := g.house.must("", append(end, name)...); err != nil {
			return err
		}
		got, err := g.house.must("", "inspect", "-f", "{{.State.ExitCode}} {{.State.Error}}", name)
		if err != nil || got != strconv.Itoa(code) {
			return fmt.Errorf("%s: exit code %q, want %d, %w", name, got, code, err)
		}
		if err := g.printed(name); err != nil {
			return err
		}
	case r.killed:
		g.tally.add("run -d cut")
	default:
		return fmt.Errorf("run -d: %+v", r)
	}
	_, err := g.house.must("No such container", "rm", "-f", name)
	return err
}

// printed waits until the container has printed its line.
func (g *guests) printed(name string) error {
	for begun := time.Now(); time.Since(begun) < time.Minute; time.Sleep(50 * time.Millisecond) {
		out, err := g.house.must("", "logs", name)
		if err != nil || out == "out" {
			return err
		}
	}
	return fmt.Errorf("%s prints nothing", name)
}
