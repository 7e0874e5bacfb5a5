package qemu

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/cradlevm/cradle/vm"
	"golang.org/x/sys/unix"
)

const (
	// maxMonitorMessage bounds one line of the monitor's, in bytes. The largest we ask for lists the devices:
	// some 70 bytes a disk.
	maxMonitorMessage = 1 << 20

	// monitorWriteLimit bounds one write to the monitor. It is not the caller's context that bounds it: half a
	// command would spoil the stream for everybody. Commands are small, so only a monitor that has stopped
	// reading for good gets here.
	monitorWriteLimit = 30 * time.Second
)

// monitor is a client of QEMU's machine protocol (QMP): commands that are answered by their id, and events in
// between. QEMU holds the guest's wall, and a guest may have broken through: its messages are bounded and a
// reply nobody waits for is dropped.
type monitor struct {
	conn    *net.UnixConn
	onEvent func(event)

	writing sync.Mutex

	mu      sync.Mutex
	last    uint64 // id of the newest command
	waiting map[uint64]chan reply
	err     error // why the monitor is gone; set before done is closed
	done    chan struct{}
}

// event is one asynchronous message of the monitor's.
type event struct {
	Name string
	Data json.RawMessage
	At   time.Time
}

// reply answers one command.
type reply struct {
	value json.RawMessage
	err   error
}

// monitorError is the monitor's own refusal of a command.
type monitorError struct {
	Class string `json:"class"`
	Desc  string `json:"desc"`
}

func (e *monitorError) Error() string { return e.Desc }

// monitorMessage is whatever the monitor may say.
type monitorMessage struct {
	Greeting json.RawMessage `json:"QMP"`
	ID       *uint64         `json:"id"`
	Return   json.RawMessage `json:"return"`
	Error    *monitorError   `json:"error"`
	Event    string          `json:"event"`
	Data     json.RawMessage `json:"data"`
	At       struct {
		Seconds      int64 `json:"seconds"`
		Microseconds int64 `json:"microseconds"`
	} `json:"timestamp"`
}

// openMonitor greets the monitor at the other end of conn, which then belongs to it. onEvent is called for each
// event, in order, from the goroutine that reads: it must not wait for the monitor.
// The error is vm.ErrExited when the connection breaks, ctx's when ctx ends first.
func openMonitor(ctx context.Context, conn *net.UnixConn, onEvent func(event)) (*monitor, error) {
	m := &monitor{conn: conn, onEvent: onEvent, waiting: map[uint64]chan reply{}, done: make(chan struct{})}
	greeted := make(chan struct{})
	go m.read(greeted)
	select {
	case <-greeted:
	case <-m.done:
		conn.Close()
		return nil, fmt.Errorf("greet QEMU's monitor: %w", m.err)
	case <-ctx.Done():
		conn.Close()
		return nil, fmt.Errorf("greet QEMU's monitor: %w", context.Cause(ctx))
	}
	if err := m.run(ctx, "qmp_capabilities", nil); err != nil {
		conn.Close()
		return nil, err
	}
	return m, nil
}

// read passes on what the monitor says until it breaks, then fails everybody who waits.
func (m *monitor) read(greeted chan<- struct{}) {
	lines := bufio.NewScanner(m.conn)
	lines.Buffer(make([]byte, 0, 4096), maxMonitorMessage)
	err := lines.Err()
	for err == nil && lines.Scan() {
		if len(bytes.TrimSpace(lines.Bytes())) == 0 {
			continue
		}
		var msg monitorMessage
		if err = json.Unmarshal(lines.Bytes(), &msg); err != nil {
			break
		}
		switch {
		case msg.Greeting != nil && greeted != nil:
			close(greeted)
			greeted = nil
		case msg.Event != "":
			m.onEvent(event{Name: msg.Event, Data: msg.Data, At: time.Unix(msg.At.Seconds, 1000*msg.At.Microseconds)})
		case msg.ID != nil:
			m.answer(*msg.ID, msg)
		}
	}
	if err == nil {
		err = lines.Err()
	}
	cause := vm.ErrExited
	if err != nil {
		cause = fmt.Errorf("%w: its monitor: %w", vm.ErrExited, err)
	}
	m.conn.Close()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.err = cause
	close(m.done)
}

func (m *monitor) answer(id uint64, msg monitorMessage) {
	m.mu.Lock()
	waiter := m.waiting[id]
	delete(m.waiting, id)
	m.mu.Unlock()
	if waiter == nil {
		return
	}
	r := reply{value: msg.Return}
	if msg.Error != nil {
		r.err = msg.Error
	}
	waiter <- r
}

// run executes a command and drops its result. See call.
func (m *monitor) run(ctx context.Context, command string, arguments any) error {
	_, err := m.call(ctx, command, arguments)
	return err
}

// call executes a command, which takes the open files fds along, and returns its result. The error is a
// *monitorError when QEMU refuses, vm.ErrExited when it has gone, ctx's when ctx ends first: the command may
// have been executed then.
func (m *monitor) call(ctx context.Context, command string, arguments any, fds ...int) (json.RawMessage, error) {
	waiter := make(chan reply, 1)
	m.mu.Lock()
	m.last++
	id := m.last
	m.waiting[id] = waiter
	m.mu.Unlock()
	defer func() {
		m.mu.Lock()
		delete(m.waiting, id)
		m.mu.Unlock()
	}()
	if err := m.send(id, command, arguments, fds); err != nil {
		return nil, fmt.Errorf("QEMU %s: %w", command, err)
	}
	select {
	case r := <-waiter:
		if r.err != nil {
			return nil, fmt.Errorf("QEMU %s: %w", command, r.err)
		}
		return r.value, nil
	case <-m.done:
		return nil, fmt.Errorf("QEMU %s: %w", command, m.err)
	case <-ctx.Done():
		return nil, fmt.Errorf("QEMU %s: %w", command, context.Cause(ctx))
	}
}

func (m *monitor) send(id uint64, command string, arguments any, fds []int) error {
	line, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
		ID        uint64 `json:"id"`
	}{command, arguments, id})
	if err != nil {
		return err
	}
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	m.writing.Lock()
	defer m.writing.Unlock()
	m.conn.SetWriteDeadline(time.Now().Add(monitorWriteLimit))
	if _, _, err := m.conn.WriteMsgUnix(append(line, '\n'), rights, nil); err != nil {
		m.conn.Close()
		return fmt.Errorf("%w: its monitor: %w", vm.ErrExited, err)
	}
	return nil
}

// close ends the conversation; QEMU goes on.
func (m *monitor) close() { m.conn.Close() }
