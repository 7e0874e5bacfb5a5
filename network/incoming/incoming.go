// Package incoming is the loop in which a server takes connections from whoever comes: so many at a time, and not at an end because
// one could not be taken.
package incoming

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"time"
)

// pause is waited after an error: out of descriptors, some are to go first.
const pause = 100 * time.Millisecond

// Serve has each connection that l accepts served by a goroutine of its own, at most so many at a time; what comes beyond them
// is closed at once. It returns when l is closed and all that it began has ended; ctx ends with l. serve closes its connection.
// Errors are logged as those of what is listening.
func Serve(ctx context.Context, l net.Listener, places int, log *slog.Logger, serve func(net.Conn)) {
	var running sync.WaitGroup
	defer running.Wait()
	taken := make(chan struct{}, places)
	for {
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			log.Warn("a connection cannot be accepted", "at", l.Addr(), "error", err)
			select {
			case <-ctx.Done():
			case <-time.After(pause):
			}
			continue
		}
		select {
		case taken <- struct{}{}:
		default:
			c.Close()
			continue
		}
		running.Go(func() {
			defer func() { <-taken }()
			serve(c)
		})
	}
}
