package sandbox

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"time"

	"github.com/cradlevm/cradle/api"
	"github.com/cradlevm/cradle/vm"
)

// Checkpoint saves the sandbox, with its disks and its containers, while it goes on. soon, when not nil, is called when most
// of it has been saved: to freeze a container, so that its processes do not run in a copy before they are told who they
// are. still is called while the machine stands still, to copy the disks; pause says for how long it stood.
// Unsupported drivers answer an api.CodeUnsupported error.
func (s *Sandbox) Checkpoint(ctx context.Context, soon, still func(context.Context) error) (saved vm.Saved, pause time.Duration, err error) {
	v, ok := s.vm.(vm.Checkpointer)
	if !ok {
		return nil, 0, api.Errorf(api.CodeUnsupported, "this virtual machine monitor cannot save a machine that runs")
	}
	saved, pause, err = v.Checkpoint(ctx, soon, still)
	if err != nil {
		return nil, pause, fmt.Errorf("save virtual machine: %w", err)
	}
	return saved, pause, nil
}

// Renew gives the guest what Restore gives it, through a new session.
func (s *Sandbox) Renew(ctx context.Context) error {
	s.Disconnect()
	return s.bringUp(ctx, s.config.Token)
}

// Identify makes a container of a restored sandbox another one: see api.IdentifyRequest.
func (s *Sandbox) Identify(ctx context.Context, r api.IdentifyRequest) (result api.IdentifyResult, err error) {
	err = s.call(ctx, api.MethodIdentify, r, &result)
	return result, err
}

// NewBootID returns a fresh UUID.
func NewBootID() string {
	var b [16]byte
	rand.Read(b[:])
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	h := hex.EncodeToString(b[:])
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

// NewMachineID returns a fresh machine id.
func NewMachineID() string {
	var b [16]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// A guest that is told the time has it late by what the call takes to arrive, which is nothing but on a busy host: it is told
// again when that may have been more than clockError, clockTries times at most.
const (
	clockError = 250 * time.Millisecond
	clockTries = 5
)

// SetClock sets the guest's clock to the host's, which a machine that stood still has fallen behind.
func (s *Sandbox) SetClock(ctx context.Context) error {
	for range clockTries {
		now := time.Now()
		if err := s.call(ctx, api.MethodConfigure, api.ConfigureRequest{UnixNanos: now.UnixNano()}, nil); err != nil {
			return err
		}
		if time.Since(now) <= clockError {
			break
		}
	}
	return nil
}
