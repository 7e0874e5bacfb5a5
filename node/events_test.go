package node

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/moby/moby/api/types/events"

	"github.com/cradlevm/cradle/dockerapi"
)

// Whoever ends a container by force tells of the signal first, as docker does: also a stop and a restart whose time
// was up, and a removal.
func TestKillEvents(t *testing.T) {
	second := 1
	for name, c := range map[string]struct {
		end  func(h *house) error
		want string
	}{
		"stop":    {func(h *house) error { return h.ContainerStop(context.Background(), "a", "", &second) }, "kill15 kill9 die137 stop"},
		"restart": {func(h *house) error { return h.ContainerRestart(context.Background(), "a", "", &second) }, "kill15 kill9 die137 stop start restart"},
		"kill":    {func(h *house) error { return h.ContainerKill(context.Background(), "a", "") }, "kill9 die137"},
		"remove":  {func(h *house) error { return h.ContainerRemove(context.Background(), "a", true, false) }, "kill9 die137 destroy"},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, h *house) {
				id := h.run("a", "deaf")
				time.Sleep(time.Second)
				begun := time.Now()
				if err := c.end(h); err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
				if name == "kill" || name == "stop" {
					h.torn(id)
				}
				var got []string
				filters := dockerapi.Filters{"container": {id: true}}
				err := h.Events(context.Background(), begun, time.Now().Add(time.Millisecond), filters, func(m events.Message) error {
					got = append(got, string(m.Action)+m.Actor.Attributes["signal"]+m.Actor.Attributes["exitCode"])
					return nil
				})
				if s := strings.Join(got, " "); s != c.want || err != nil {
					t.Errorf("%s %v, want %s", s, err, c.want)
				}
			})
		})
	}
}

// A container is named by the beginning of its id or name, an image by all of it, with or without a tag.
func TestEventFilters(t *testing.T) {
	box := events.Message{Type: events.ContainerEventType, Action: "die", Scope: "local",
		Actor: events.Actor{ID: "0123456789ab", Attributes: map[string]string{"name": "box", "image": "reg.io/busybox:1", "k": "v"}}}
	img := events.Message{Type: events.ImageEventType, Action: "tag",
		Actor: events.Actor{ID: "sha256:0123456789ab", Attributes: map[string]string{"name": "busybox:latest"}}}
	for _, c := range []struct {
		key, value string
		box, img   bool
	}{
		{"container", "box", true, false}, {"container", "bo", true, false}, {"container", "0123", true, false},
		{"container", "ox", false, false}, {"container", "boxes", false, false}, {"container", "busybox", false, false},
		{"image", "busybox", false, true}, {"image", "busybox:latest", false, true}, {"image", "busy", false, false},
		{"image", "reg.io/busybox", true, false}, {"image", "reg.io/busybox:1", true, false}, {"image", "reg.io/busybox:2", false, false},
		{"image", "sha256:0123456789ab", false, true}, {"image", "sha256:0123", false, false},
		{"type", "image", false, true}, {"event", "die", true, false}, {"label", "k=v", true, false}, {"scope", "local", true, false},
	} {
		filters := dockerapi.Filters{c.key: {c.value: true}}
		if a, b := matchesEvent(box, filters), matchesEvent(img, filters); a != c.box || b != c.img {
			t.Errorf("%s=%s: container %t, image %t", c.key, c.value, a, b)
		}
	}
}
