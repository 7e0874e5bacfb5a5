package node

import (
	"context"
	"maps"
	"strings"
	"sync"
	"time"

	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/events"

	"github.com/cradlevm/cradle/dockerapi"
)

// eventHistory is how many past events a client can ask for; docker keeps 256.
const eventHistory = 1024

// eventLog keeps the last events and tells watchers of new ones.
type eventLog struct {
	mu       sync.Mutex
	past     []events.Message
	watchers map[int]func(events.Message)
	next     int
}

func newEventLog() *eventLog { return &eventLog{watchers: map[int]func(events.Message){}} }

func (l *eventLog) add(kind events.Type, action events.Action, id string, attributes map[string]string) {
	now := time.Now()
	m := events.Message{
		Type: kind, Action: action, Scope: "local", Time: now.Unix(), TimeNano: now.UnixNano(),
		Actor: events.Actor{ID: id, Attributes: attributes},
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.past) == eventHistory {
		l.past[0] = events.Message{}
		l.past = l.past[1:] // append moves the rest once for so many events, not for each
	}
	l.past = append(l.past, m)
	for _, f := range l.watchers {
		f(m)
	}
}

// watch calls f with every new event until stop is called. f must not block and must not call the log.
func (l *eventLog) watch(f func(events.Message)) (stop func()) {
	_, stop = l.watchFrom(time.Time{}, f)
	return stop
}

// watchFrom is watch that also returns the past events since a time (zero: none), without a gap between the two.
func (l *eventLog) watchFrom(since time.Time, f func(events.Message)) (past []events.Message, stop func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !since.IsZero() {
		for _, m := range l.past {
			if m.TimeNano >= since.UnixNano() {
				past = append(past, m)
			}
		}
	}
	id := l.next
	l.next++
	l.watchers[id] = f
	return past, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.watchers, id)
	}
}

// eventBacklog is how far a client may fall behind before its events stream ends.
const eventBacklog = 4096

// Events implements dockerapi.Backend.
func (n *Node) Events(ctx context.Context, since, until time.Time, filters dockerapi.Filters, send func(events.Message) error) error {
	if err := knownFilters(filters, "event", "type", "container", "image", "label", "scope", "daemon", "network", "volume"); err != nil {
		return err
	}
	live := make(chan events.Message, eventBacklog)
	behind := make(chan struct{})
	past, stop := n.events.watchFrom(since, func(m events.Message) {
		select {
		case live <- m:
		default:
			select {
			case <-behind:
			default:
				close(behind)
			}
		}
	})
	defer stop()
	var end <-chan time.Time
	if !until.IsZero() {
		t := time.NewTimer(time.Until(until))
		defer t.Stop()
		end = t.C
	}
	for _, m := range past {
		if !until.IsZero() && m.TimeNano > until.UnixNano() {
			continue // the clock may have been put back since
		}
		if matchesEvent(m, filters) {
			if err := send(m); err != nil {
				return err
			}
		}
	}
	for {
		select {
		case m := <-live:
			if matchesEvent(m, filters) {
				if err := send(m); err != nil {
					return err
				}
			}
		case <-behind:
			return conflict("the client reads its events too slowly: more than %d are waiting", eventBacklog)
		case <-end:
			return nil
		case <-ctx.Done():
			return nil
		case <-n.ctx.Done():
			return nil
		}
	}
}

// matchesEvent applies docker's event filters: any value of a key, every key.
func matchesEvent(m events.Message, filters dockerapi.Filters) bool {
	for key, values := range filters {
		if len(values) == 0 {
			continue
		}
		ok := false
		switch key {
		case "event":
			name, _, _ := strings.Cut(string(m.Action), ":")
			ok = values[string(m.Action)] || values[name]
		case "type":
			ok = values[string(m.Type)]
		case "scope":
			ok = values[m.Scope]
		case "container":
			ok = m.Type == events.ContainerEventType &&
				(anyPrefix(values, m.Actor.ID) || anyPrefix(values, m.Actor.Attributes["name"])) // the name's beginning too
		case "image":
			ok = matchesImage(m, values)
		case "label":
			ok = matchesLabels(m.Actor.Attributes, values)
		case "volume":
			ok = m.Type == events.VolumeEventType && values[m.Actor.ID]
		case "network":
			ok = m.Type == events.NetworkEventType && (anyPrefix(values, m.Actor.ID) || values[m.Actor.Attributes["name"]])
		default: // daemon: this one has no such events
			ok = false
		}
		if !ok {
			return false
		}
	}
	return true
}

// anyPrefix reports whether an id or a name begins with any of the values.
func anyPrefix(values map[string]bool, id string) bool {
	for v := range maps.Keys(values) {
		if strings.HasPrefix(id, v) {
			return true
		}
	}
	return false
}

// matchesImage is docker's: an image's own events by its id or name, a container's by the name of its image, each with
// or without a tag.
func matchesImage(m events.Message, values map[string]bool) bool {
	name := m.Actor.Attributes["image"]
	if m.Type == events.ImageEventType {
		name = m.Actor.Attributes["name"]
	}
	return values[m.Actor.ID] || values[name] || values[withoutTag(m.Actor.ID)] || values[withoutTag(name)]
}

// withoutTag is a name without its tag, or what is no name as it is.
func withoutTag(name string) string {
	named, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return name
	}
	return reference.FamiliarName(named)
}

// matchesLabels reports whether labels have every wanted "key" or "key=value".
func matchesLabels(labels map[string]string, wanted map[string]bool) bool {
	for w := range wanted {
		key, value, hasValue := strings.Cut(w, "=")
		have, ok := labels[key]
		if !ok || (hasValue && have != value) {
			return false
		}
	}
	return true
}

// knownFilters refuses a filter that would otherwise be ignored, in docker's words.
func knownFilters(filters dockerapi.Filters, known ...string) error {
next:
	for key := range filters {
		for _, k := range known {
			if key == k {
				continue next
			}
		}
		return invalid("invalid filter '%s'", key)
	}
	return nil
}
