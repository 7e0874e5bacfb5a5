// Bench measures what cradle promises and prints one table: medians and p99 of several runs beside a peer's in the same
// run on the same machine, as ratios, because absolute times on a shared machine mean little. Nothing in the table is
// written down beforehand but the goals.
//
// `make bench` runs it: it builds what it measures and gets the peers (hack/bench.sh). A peer that cannot be had leaves
// its rows without a ratio, and says why.
//
// To add a row: measure in a file of its own, and name the function in groups.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
)

// env is what a measurement works with.
type env struct {
	bin, guest, images string        // directories: our programs, a guest, test images
	containerd         string        // directory of containerd, ctr and the runc shim; empty: not to be had
	runsc              string        // the program; empty: not to be had
	dir                string        // scratch, removed at the end
	runs               int           // of each measurement
	few                int           // of those that take a minute each, at most runs
	lines              int           // that the container prints in logs
	containers         int           // in memory
	crowd              int           // started at once
	sandboxes          int           // alive together in many
	requests           int           // that the server answers in web
	turn               time.Duration // how long a web server is asked at a time
}

// group is a number of measurements that share what they need: it returns the rows it fills.
type group struct {
	name  string
	asked bool // runs only when it is asked for: it takes long
	run   func(ctx context.Context, e env) ([]row, error)
}

func groups() []group {
	return []group{
		{name: "boot", run: boot},
		{name: "load", run: load},
		{name: "cli", run: cliStart},
		{name: "exec", run: execs},
		{name: "logs", run: logs},
		{name: "memory", run: memory},
		{name: "run", run: runs},
		{name: "idle", run: idle},
		{name: "crowd", run: crowd},
		{name: "clone", run: clone},
		{name: "warm", run: warm},
		{name: "many", asked: true, run: many},
		{name: "web", asked: true, run: web},
	}
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "bench:", err)
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) (err error) {
	var e env
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&e.bin, "bin", "bin", "directory of cradle's programs")
	flags.StringVar(&e.guest, "guest", "out/guest", "directory of the guest's kernel and initrd")
	flags.StringVar(&e.images, "images", "out/images", "directory of the test images")
	flags.StringVar(&e.containerd, "containerd", "", "directory of containerd, ctr and containerd-shim-runc-v2")
	flags.StringVar(&e.runsc, "runsc", "", "path of runsc")
	flags.IntVar(&e.runs, "n", 30, "runs of each measurement; crowds are started 10 times at most, what takes a minute is run 3 times at most")
	flags.IntVar(&e.lines, "lines", 500_000, "lines that a container prints (logs)")
	flags.IntVar(&e.containers, "containers", 100, "containers under a daemon (memory)")
	flags.IntVar(&e.crowd, "crowd", 150, "containers started at once (crowd)")
	flags.IntVar(&e.sandboxes, "sandboxes", 500, "sandboxes alive together (many)")
	flags.IntVar(&e.requests, "requests", 100_000, "requests that a web server answers (web)")
	smoke := flags.Bool("smoke", false, "the least of everything: shows that the benchmarks work, measures nothing")
	only := flags.String("only", "", "comma-separated names of measurements: "+strings.Join(names(), ", ")+"; all but many and web when empty")
	file := flags.String("json", "", "file to write every measurement to")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *smoke {
		e.runs, e.lines, e.containers, e.crowd, e.sandboxes, e.requests = 1, 1000, 2, 2, 2, 100
	}
	if e.runs < 1 || flags.NArg() > 0 {
		return errors.New("-n is at least 1, and there are no other arguments")
	}
	e.few, e.turn = min(e.runs, 3), 5*time.Second
	if *smoke {
		e.turn = time.Second
	}
	chosen, err := choose(*only)
	if err != nil {
		return err
	}
	for _, path := range []*string{&e.bin, &e.guest, &e.images} {
		if *path, err = filepath.Abs(*path); err != nil {
			return err
		}
	}
	if e.dir, err = os.MkdirTemp("", "cradle-bench-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unmountBelow(e.dir), os.RemoveAll(e.dir)) }()

	began := time.Now()
	var rows []row
	var failed error
	for _, g := range chosen {
		if ctx.Err() != nil {
			break
		}
		fmt.Fprintf(stderr, "measuring %s (load %s)\n", g.name, loadAverage())
		r, err := g.run(ctx, e)
		if err != nil {
			failed = errors.Join(failed, fmt.Errorf("%s: %w", g.name, err))
		}
		rows = append(rows, r...)
	}
	if ctx.Err() != nil { // what was measured until then is still worth its paper
		failed = errors.Join(failed, context.Cause(ctx))
	}
	machine := describeMachine()
	fmt.Fprintf(stdout, "%s, %s, load now %s\n", began.Format(time.DateTime), machine, loadAverage())
	if err := printTable(stdout, rows); err != nil {
		return err
	}
	if *file == "" {
		return failed
	}
	f, err := os.Create(*file)
	if err != nil {
		return errors.Join(failed, err)
	}
	return errors.Join(failed, writeReport(f, machine, began, rows), f.Close())
}

func names() []string {
	var out []string
	for _, g := range groups() {
		out = append(out, g.name)
	}
	return out
}

// choose returns the groups that were asked for.
func choose(only string) ([]group, error) {
	var out []group
	asked := strings.FieldsFunc(only, func(c rune) bool { return c == ',' })
	for _, name := range asked {
		if !slices.Contains(names(), name) {
			return nil, fmt.Errorf("no measurement %q: there are %s", name, strings.Join(names(), ", "))
		}
	}
	for _, g := range groups() {
		if slices.Contains(asked, g.name) || len(asked) == 0 && !g.asked {
			out = append(out, g)
		}
	}
	return out, nil
}

// describeMachine says where the figures are from.
func describeMachine() string {
	kernel := "?"
	if b, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		kernel = strings.TrimSpace(string(b))
	}
	return fmt.Sprintf("%d CPUs, Linux %s", runtime.NumCPU(), kernel)
}

// loadAverage is how busy the machine has been this last minute: what a reader needs to trust the figures.
func loadAverage() string {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "?"
	}
	return strings.Fields(string(b))[0]
}
