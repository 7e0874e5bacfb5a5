package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"github.com/spf13/cobra"
)

// daemonDialer connects to the daemon, and starts it where that is this program's to do.
type daemonDialer struct {
	host             string // as docker writes it: unix:///run/cradle/cradle.sock
	network, address string
	run              string // the runtime directory, when a daemon may be started in it; else empty
	start            func(ctx context.Context, run string) error

	mu    sync.Mutex
	spare net.Conn // proven to lead to a living daemon; the next dial takes it

	timing  *timing // from the beginning: it costs nothing until it is watched
	watched bool    // connections are
}

// newDaemonDialer finds the daemon: the flag, else CRADLE_HOST, else the socket in the runtime directory.
func newDaemonDialer(flag string, getenv env) (*daemonDialer, error) {
	d := &daemonDialer{host: flag, start: startDaemon, timing: newTiming()}
	if d.host == "" {
		d.host = getenv(envHost)
	}
	if d.host == "" {
		run, err := runDir(getenv, os.Geteuid())
		if err != nil {
			return nil, err
		}
		d.run, d.host = run, "unix://"+filepath.Join(run, socketName)
	}
	if strings.HasPrefix(d.host, "/") {
		d.host = "unix://" + d.host
	}
	proto, rest, ok := strings.Cut(d.host, "://")
	switch {
	case ok && proto == "unix" && filepath.IsAbs(rest):
		if len(rest) > maxSocketPath {
			return nil, fmt.Errorf("the socket's path has %d bytes, the system allows %d: %s", len(rest), maxSocketPath, rest)
		}
		d.network, d.address = proto, rest
	case ok && proto == "tcp" && rest != "":
		u, err := url.Parse(d.host)
		if err != nil {
			return nil, fmt.Errorf("invalid daemon address: %w", err)
		}
		d.network, d.address = proto, u.Host
	default:
		return nil, fmt.Errorf("invalid daemon address %q: write unix:///path/to/socket or tcp://host:port", d.host)
	}
	return d, nil
}

// dial is the connection function of every client here.
func (d *daemonDialer) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	d.mu.Lock()
	conn, watched := d.spare, d.watched
	d.spare = nil
	d.mu.Unlock()
	if conn == nil {
		var err error
		if conn, err = new(net.Dialer).DialContext(ctx, d.network, d.address); err != nil {
			return nil, err
		}
	}
	if watched {
		conn = d.timing.watch(conn)
	}
	return conn, nil
}

// watch has the connections that are made from now on watched.
func (d *daemonDialer) watch() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.watched = true
	if d.run == "" { // no daemon was looked for before
		d.timing.mark("client")
	}
}

// unwatch ends watch for new connections, and returns what was noted.
func (d *daemonDialer) unwatch() *timing {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.watched = false
	return d.timing
}

// ensure returns when a daemon answers, after starting one if none runs and it may. A daemon that was named
// by the user is left to docker's own code and messages.
func (d *daemonDialer) ensure(ctx context.Context) error {
	if d.run == "" {
		return nil
	}
	d.timing.mark("client")
	defer d.timing.mark("daemon")
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	conn, err := d.greet(ctx)
	// More than once only when the daemon goes idle at this very moment.
	for try := 0; noDaemon(err) && try < startTries; try++ {
		if err := d.start(ctx, d.run); err != nil {
			return err
		}
		conn, err = d.greet(ctx)
	}
	switch {
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("permission denied while trying to connect to the cradle daemon at %s", d.host)
	case err != nil:
		return fmt.Errorf("cannot connect to the cradle daemon at %s: %w", d.host, err)
	}
	d.mu.Lock()
	d.spare = conn
	d.mu.Unlock()
	return nil
}

// noDaemon tells whether err says that nobody is at the socket, or that who was there just went.
func noDaemon(err error) bool {
	for _, gone := range []error{syscall.ENOENT, syscall.ECONNREFUSED, syscall.ECONNRESET, syscall.EPIPE, io.EOF, io.ErrUnexpectedEOF} {
		if errors.Is(err, gone) {
			return true
		}
	}
	return false
}

// greet connects and waits for the answer to a ping. An idle daemon may be on its way out behind its socket;
// one that has answered stays for as long as the connection does.
func (d *daemonDialer) greet(ctx context.Context) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, d.network, d.address)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	err = ping(conn)
	if !stop() {
		err = errors.Join(context.Cause(ctx), err)
	}
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	return conn, nil
}

func ping(conn net.Conn) error {
	req, err := http.NewRequest(http.MethodHead, "http://cradle/_ping", nil)
	if err != nil {
		return err
	}
	if err := req.Write(conn); err != nil {
		return err
	}
	r := bufio.NewReader(conn)
	resp, err := http.ReadResponse(r, req)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK || resp.Close || r.Buffered() > 0 {
		return fmt.Errorf("unexpected answer to a ping: %s", resp.Status)
	}
	return nil
}

// needsDaemon tells whether cmd talks to the daemon, so that one has to run.
func needsDaemon(cmd *cobra.Command) bool {
	if !cmd.HasParent() || cmd.HasSubCommands() {
		return false
	}
	top := cmd
	for top.Parent().HasParent() {
		top = top.Parent()
	}
	switch top.Name() {
	case "daemon", "help", "completion", "logout", cobra.ShellCompRequestCmd, cobra.ShellCompNoDescRequestCmd:
		return false
	}
	return cmd.Annotations[annotationNoDaemon] == ""
}

// annotationNoDaemon marks a command that looks after the daemon itself.
const annotationNoDaemon = "cradle.no-daemon"
