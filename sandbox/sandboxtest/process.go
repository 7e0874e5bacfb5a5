package sandboxtest

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"

	"github.com/cradlevm/cradle/api"
)

// Process is what a program sees of itself.
type Process struct {
	Args    []string
	Stdin   io.Reader
	Signals <-chan int // all but SIGKILL, which ends it at once
	// Restored: it was saved while it ran, and goes on with the Memory it had.
	Restored bool

	stdin   *io.PipeWriter
	signals chan int

	mu      sync.Mutex
	out     []byte // the journal: framed records
	acked   uint64
	memory  string
	changed chan struct{}
	over    bool
	code    int
	oom     bool
	exited  chan struct{}
}

func newProcess(args []string) *Process {
	r, w := io.Pipe()
	p := &Process{Args: args, Stdin: r, stdin: w, signals: make(chan int, 16), changed: make(chan struct{}), exited: make(chan struct{})}
	p.Signals = p.signals
	return p
}

// Killed is closed when the process has ended; a program that would go on returns then.
func (p *Process) Killed() <-chan struct{} { return p.exited }

// Print writes a record to a stream, api.Stdout or api.Stderr.
func (p *Process) Print(stream byte, text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.over {
		return
	}
	for len(text) > 0 {
		n := min(len(text), api.MaxOutputChunk)
		p.out = binary.BigEndian.AppendUint32(append(p.out, stream, 0, 0, 0), uint32(n))
		p.out = append(p.out, text[:n]...)
		text = text[n:]
	}
	close(p.changed)
	p.changed = make(chan struct{})
}

// OOM makes the exit that follows the kernel's doing.
func (p *Process) OOM() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.oom = true
}

// exit ends the process; only the first end counts.
func (p *Process) exit(code int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.over {
		return
	}
	p.over, p.code = true, code
	p.stdin.Close()
	close(p.changed)
	close(p.exited)
}

func (p *Process) hasExited() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.over
}

// status is how the process ended; it has.
func (p *Process) status() api.ExitStatus {
	p.mu.Lock()
	defer p.mu.Unlock()
	return api.ExitStatus{Code: p.code, OOMKilled: p.oom}
}

// Signal sends a signal, as the agent does.
func (p *Process) Signal(n int) error {
	if p.hasExited() {
		return api.Errorf(api.CodeFailedPrecondition, "the process is not running")
	}
	if n == 0 {
		return nil
	}
	if n == 9 {
		p.exit(137)
		return nil
	}
	select {
	case p.signals <- n:
	default:
	}
	return nil
}

// journal returns what follows offset at, whether more may come, and what is closed when it does.
func (p *Process) journal(at uint64) (piece []byte, more bool, changed <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if at < uint64(len(p.out)) {
		return p.out[at:], true, p.changed
	}
	return nil, !p.over, p.changed
}

// begin is where output begins that is asked for from offset at.
func (p *Process) begin(at uint64, left bool) (uint64, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case at < p.acked && left:
		return p.acked, nil
	case at < p.acked:
		return 0, api.Errorf(api.CodeFailedPrecondition, "output before offset %d has been acknowledged", p.acked)
	case at > uint64(len(p.out)):
		return 0, api.Errorf(api.CodeInvalid, "output ends at offset %d", len(p.out))
	}
	return at, nil
}

func (p *Process) acknowledge(at uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.acked = max(p.acked, at)
}

// Basic are programs that most tests need.
//
//	true                exits at once
//	exit N              exits with N
//	echo WORDS          prints the words on stdout, exits
//	err WORDS           prints the words on stderr, exits
//	sleep               runs until a signal; exits with 128 + its number
//	deaf                runs until SIGKILL
//	cat                 copies its input to its output
//	lines N             prints 1 to N, then runs as sleep does
//	remember            takes each line of its input into its memory and prints it; restored it first prints what it remembers
func Basic() map[string]func(*Process) int {
	untilSignal := func(p *Process) int {
		select {
		case n := <-p.Signals:
			return 128 + n
		case <-p.Killed():
			return 137
		}
	}
	words := func(p *Process) string { return strings.Join(p.Args[1:], " ") + "\n" }
	return map[string]func(*Process) int{
		"true":  func(*Process) int { return 0 },
		"echo":  func(p *Process) int { p.Print(api.Stdout, words(p)); return 0 },
		"err":   func(p *Process) int { p.Print(api.Stderr, words(p)); return 0 },
		"sleep": untilSignal,
		"deaf":  func(p *Process) int { <-p.Killed(); return 137 },
		"exit": func(p *Process) int {
			code, err := strconv.Atoi(p.Args[1])
			if err != nil {
				return 255
			}
			return code
		},
		"lines": func(p *Process) int {
			n, err := strconv.Atoi(p.Args[1])
			if err != nil {
				return 255
			}
			for i := range n {
				p.Print(api.Stdout, fmt.Sprintf("%d\n", i+1))
			}
			return untilSignal(p)
		},
		"remember": func(p *Process) int {
			if p.Restored {
				p.Print(api.Stdout, "remembered "+p.Memory()+"\n")
			}
			lines := bufio.NewScanner(p.Stdin)
			for lines.Scan() {
				p.Remember(lines.Text())
				p.Print(api.Stdout, lines.Text()+"\n")
			}
			return untilSignal(p)
		},
		"cat": func(p *Process) int {
			buf := make([]byte, 4096)
			for {
				n, err := p.Stdin.Read(buf)
				p.Print(api.Stdout, string(buf[:n]))
				if err != nil {
					return 0
				}
			}
		},
	}
}

// Unacknowledged is how many bytes of the journal the host has not let go.
func (p *Process) Unacknowledged() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.out) - int(p.acked)
}

// Exit ends the process as if it had done so itself.
func (p *Process) Exit(code int) { p.exit(code) }
