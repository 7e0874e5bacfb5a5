package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"time"
)

// closePatience is how long requests in progress may take to end when the daemon does.
const closePatience = 5 * time.Second

// service is what the daemon serves.
type service struct {
	Handler http.Handler
	// Busy tells whether there is something to keep the daemon alive for without connections.
	Busy func() bool
	// Close ends the service, after the last request; containers that are to outlive the daemon do.
	Close func() error
	// Ended, when not nil, is closed by the service when it wants the daemon to end (after a reset).
	Ended <-chan struct{}
}

// openFunc makes the service. ctx bounds the call, not the service's life.
type openFunc func(ctx context.Context, c daemonConfig) (*service, error)

// serveDaemon is the life of a daemon: it makes sure to be the only one, opens the service, listens, and closes
// all of it in reverse when ctx ends, the daemon is idle, or the service wants to.
func serveDaemon(ctx context.Context, c daemonConfig, open openFunc) (err error) {
	// Requests learn of the end when their turn comes, not at once with ctx.
	life, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()

	if err := keepDescriptors(); err != nil {
		return err
	}
	if err := claimDir(c.Root, 0o711, rootLockName); err != nil {
		return err
	}
	if err := claimRun(c.Run, os.Geteuid()); err != nil {
		return err
	}
	unlock, err := lockPlaces(ctx, c)
	if err != nil {
		return err
	}
	defer unlock()

	svc, err := open(ctx, c)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, svc.Close()) }()

	listener, made, err := listen(c.Socket)
	if err != nil {
		return err
	}
	idle := newIdleListener(listener, made, c.IdleTimeout, svc.Busy)
	defer idle.Close()

	server := &http.Server{
		Handler:           svc.Handler,
		BaseContext:       func(net.Listener) context.Context { return life },
		ReadHeaderTimeout: time.Minute,
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(idle) }()
	if err := announceReady(os.Getenv); err != nil {
		c.Log.Warn("nobody was told that the daemon is ready", "reason", err)
	}
	c.Log.Info("cradle daemon ready", "socket", c.Socket, "root", c.Root, "version", c.Version)

	select {
	case <-ctx.Done():
		c.Log.Info("ending", "reason", context.Cause(ctx))
	case <-idle.Idle():
		c.Log.Info("ending", "reason", "idle")
	case <-svc.Ended:
		c.Log.Info("ending", "reason", "reset")
	case err := <-served:
		return fmt.Errorf("serving %s: %w", c.Socket, err)
	}
	_ = idle.Close()
	cancel() // streams that would go on for ever (logs -f, events, wait) end now
	patience, done := context.WithTimeout(context.Background(), closePatience)
	defer done()
	if err := server.Shutdown(patience); err != nil {
		return server.Close()
	}
	return nil
}
