package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cradlevm/cradle/api/wire"
	"github.com/cradlevm/cradle/vm"
)

// ending is a VM that ends soon.
type ending struct {
	vm.VM
	done chan struct{}
}

func (e ending) Done() <-chan struct{} { return e.done }

// Whichever is heard of first when a monitor is killed, its end or that of a connection to it, the cause is its end.
func TestKilledMonitorIsGone(t *testing.T) {
	reset := &net.OpError{Op: "read", Net: "unix", Err: syscall.ECONNRESET}
	for _, c := range []struct {
		err  error
		gone bool
	}{{wire.ErrSession, true}, {fmt.Errorf("open agent session: %w", reset), true}, {io.EOF, true}, {context.Canceled, false}} {
		synctest.Test(t, func(t *testing.T) {
			machine := ending{done: make(chan struct{})}
			time.AfterFunc(goneGrace/2, func() { close(machine.done) })
			if err := newSandbox(Config{}, machine).classify(c.err); errors.Is(err, ErrGone) != c.gone {
				t.Errorf("%v becomes %v", c.err, err)
			}
			<-machine.done
		})
	}
}
