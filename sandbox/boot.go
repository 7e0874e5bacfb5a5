package sandbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cradlevm/cradle/vm"
)

// BootTimeout bounds how long a guest may take from power-on to its agent's first answer. Software emulation on a
// loaded host needs seconds; a guest that needs more than this never comes.
const BootTimeout = 90 * time.Second

// A guest of software emulation has one timer, its processor's own, whose frequency Linux measures for 100 ms by the time
// stamp counter (calibrate_APIC_clock). The host may take the processor away before the first of the measure's samples, for
// as long as the measure takes: the rest are then taken all at once, the timer seems to stand still, and Linux does without
// it. It goes on until something sleeps, which is for ever, so such a guest is given up and powered on again. cradle's own
// kernel is told the frequency (hack/kernel-patches) and measures nothing; others, such as Debian's, have no word for it.
const (
	// timerLost is what Linux (6.12) says of it on the console, less than consoleEnd bytes before it hangs.
	timerLost  = "APIC frequency too slow, disabling apic timer"
	consoleEnd = 16 << 10
	// maxBoots is how often one Start powers a guest on. A processor that is shared by three guests and two busy loops has
	// lost the timer of one boot in seven.
	maxBoots = 4
	// consolePoll is how often the console is looked at, while the agent has not answered. A boot on an idle host takes 1 s.
	consolePoll = 500 * time.Millisecond
)

// ErrTimer means that a guest's kernel has no timer, because the host was too busy while the guest booted.
var ErrTimer = errors.New("the guest's kernel could not measure its timer, the host being too busy")

// Start boots a VM and returns when its agent is configured. ctx bounds the call, as BootTimeout does each time that the
// guest is powered on, which is more than once if it comes up without a timer; ErrTimer if it always does. On error
// nothing is left behind but the files of c.VM.Dir, and the error carries what the guest's console said last.
func Start(ctx context.Context, driver vm.Driver, c Config) (*Sandbox, error) {
	for boots := 1; ; boots++ {
		s, err := boot(ctx, driver, c)
		switch {
		case err == nil:
			s.boots = boots
			return s, nil
		case !errors.Is(err, ErrTimer) || ctx.Err() != nil:
			return nil, err
		case boots == maxBoots:
			return nil, fmt.Errorf("booted %d times: %w", boots, err)
		}
	}
}

// Boots is how often Start has powered the guest on until it came up with a timer; 0 of a sandbox that was not booted here.
func (s *Sandbox) Boots() int { return s.boots }

// boot is Start, once.
func boot(ctx context.Context, driver vm.Driver, c Config) (*Sandbox, error) {
	machine, err := driver.Start(ctx, c.VM)
	if err != nil {
		return nil, fmt.Errorf("start virtual machine: %w", err)
	}
	s := newSandbox(c, machine)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go s.watchTimer(ctx, cancel)
	if err := s.bringUp(ctx, c.Token); err != nil {
		return nil, errors.Join(err, s.Kill())
	}
	return s, nil
}

// watchTimer gives up, by ErrTimer, a guest that says that it has lost its timer. It returns when ctx ends. Nothing of a
// tenant's runs yet that could say so, too.
func (s *Sandbox) watchTimer(ctx context.Context, giveUp context.CancelCauseFunc) {
	look := time.NewTicker(consolePoll)
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-look.C:
			if bytes.Contains(s.vm.Console(consoleEnd), []byte(timerLost)) {
				giveUp(ErrTimer)
				return
			}
		}
	}
}
