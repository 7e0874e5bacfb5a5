package main

import (
	"context"
	"errors"
)

// runDaemon runs the node daemon until ctx ends or it has been idle for long enough.
func runDaemon(ctx context.Context, c daemonConfig) error {
	return serveDaemon(ctx, c, openService)
}

// openService wires the daemon's parts together: the one place that knows them all.
func openService(_ context.Context, _ daemonConfig) (*service, error) {
	return nil, errors.New("this build of cradle has no node daemon")
}
