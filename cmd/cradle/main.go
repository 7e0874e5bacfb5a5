// Command cradle is the command line of cradle and, as `cradle daemon`, its node daemon.
//
// The client side is docker's own command library under cradle's name: every flag, format, message and exit
// code of a command that both have is docker's. What differs is where the daemon is (socket.go), that it is
// started when none runs (ondemand.go), and the commands docker has no word for (summon.go, reset.go).
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/containerd/errdefs"
	"github.com/docker/cli/cli"
	"github.com/docker/cli/cli/command"
)

func main() {
	ctx, stop := signalContext(context.Background())
	err := run(ctx, os.Args[1:], runDaemon)
	stop()
	os.Exit(report(ctx, err))
}

// run is the whole program: it parses args and executes one command. daemon is what `cradle daemon` runs.
func run(ctx context.Context, args []string, daemon daemonFunc) error {
	setVersion()
	docker, err := command.NewDockerCli(command.WithBaseContext(ctx), command.WithUserAgent(userAgent()))
	if err != nil {
		return err
	}
	root, rest, err := newRoot(docker, args, daemon)
	if err != nil {
		return err
	}
	go exitOnThirdSignal(ctx, docker)
	root.SetArgs(rest)
	return root.ExecuteContext(ctx)
}

// report prints err in cradle's words and returns the exit code for it.
func report(ctx context.Context, err error) int {
	if err == nil {
		return 0
	}
	if sig := signalOf(ctx); sig != 0 && (errdefs.IsCanceled(err) || errors.As(err, new(signalled))) {
		return 128 + int(sig)
	}
	if words := inOurWords(err.Error()); words != "" {
		fmt.Fprintln(os.Stderr, words)
	}
	var status cli.StatusError
	if errors.As(err, &status) && status.StatusCode != 0 {
		return status.StatusCode
	}
	return 1
}

// signalled is the cause of a context that a signal ended.
type signalled struct{ signal syscall.Signal }

func (s signalled) Error() string { return "interrupted by signal: " + s.signal.String() }

// signalContext ends with the first SIGINT or SIGTERM, which it keeps as its cause. Commands that hand signals
// on to a container install handlers of their own beside it.
func signalContext(parent context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(parent)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	go func() {
		select {
		case <-ctx.Done():
		case s := <-signals:
			cancel(signalled{s.(syscall.Signal)})
		}
		signal.Stop(signals)
	}()
	return ctx, func() { cancel(nil) }
}

// signalOf is the signal that ended ctx, or 0.
func signalOf(ctx context.Context) syscall.Signal {
	if s, ok := errors.AsType[signalled](context.Cause(ctx)); ok {
		return s.signal
	}
	return 0
}

// exitOnThirdSignal is the way out when a command does not heed its context: two more signals after the first
// end the process, with the terminal put back as it was.
func exitOnThirdSignal(ctx context.Context, streams command.Streams) {
	<-ctx.Done()
	if signalOf(ctx) == 0 {
		return
	}
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	<-signals
	<-signals
	streams.In().RestoreTerminal()
	streams.Out().RestoreTerminal()
	fmt.Fprintln(os.Stderr, "\ngot 3 SIGTERM/SIGINTs, forcefully exiting")
	os.Exit(1)
}
