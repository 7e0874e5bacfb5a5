package node

import (
	"context"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	mobynet "github.com/moby/moby/api/types/network"

	"github.com/cradlevm/cradle/sandbox/sandboxtest"
)

// sharing has a container share the sandbox of another.
func sharingWith(name string) func(*container.CreateRequest) {
	return func(r *container.CreateRequest) {
		r.HostConfig.NetworkMode = container.NetworkMode("container:" + name)
	}
}

// machineOf is the machine of a container that has one.
func (h *house) machineOf(id string) *sandboxtest.Machine {
	h.t.Helper()
	m := h.driver.Machine(id)
	if m == nil {
		h.t.Fatalf("container %s has no machine", id)
	}
	return m
}

// wantShared fails the test unless the one machine has these containers, with two disks each, the owner's with its own names.
func (h *house) wantShared(owner string, with ...string) {
	h.t.Helper()
	m := h.machineOf(owner)
	want := []string{"layer0", "scratch"}
	for _, id := range with {
		want = append(want, id[:12]+"layer0", id[:12]+"scratch")
		if m.Process(id) == nil {
			h.t.Errorf("container %s is not in the machine", id)
		}
	}
	slices.Sort(want)
	if got := m.Disks(); !slices.Equal(got, want) {
		h.t.Errorf("disks %v, want %v", got, want)
	}
	if n := len(h.driver.Running()); n != 1 {
		h.t.Errorf("%d machines run", n)
	}
}

// TestShare: a container comes into another's machine and goes, as often as it likes.
func TestShare(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		web := h.run("web", "sleep", func(r *container.CreateRequest) { r.Config.Hostname = "www" })
		side := h.run("side", "lines 3", sharingWith("web"))
		third := h.run("third", "sleep", sharingWith("side"))
		synctest.Wait()
		h.wantShared(web, side, third)
		got, err := h.ContainerInspect(context.Background(), "side", false)
		if err != nil {
			t.Fatal(err)
		}
		if got.HostConfig.NetworkMode != container.NetworkMode("container:"+web) || got.Config.Hostname != "www" || len(got.NetworkSettings.Networks) > 0 {
			t.Errorf("network mode %s, hostname %s, networks %v", got.HostConfig.NetworkMode, got.Config.Hostname, got.NetworkSettings.Networks)
		}
		if out := h.output("side"); out != numbers(3) {
			t.Errorf("the log has %q", out)
		}
		for range 2 {
			if err := h.ContainerStop(context.Background(), "side", "", nil); err != nil {
				t.Fatal(err)
			}
			h.torn("side")
			h.wantState("side", container.StateExited, 143)
			h.wantShared(web, third)
			h.start("side")
			h.wantShared(web, side, third)
		}
		if err := h.ContainerRemove(context.Background(), "side", true, false); err != nil {
			t.Fatal(err)
		}
		h.wantShared(web, third)
		h.run("short", "true", sharingWith("web"), autoRemove)
		h.wait("short", container.WaitConditionRemoved)
		h.wantShared(web, third)
	})
}

// TestShareEnds: with the owner's end, however it comes, all that share its machine end.
func TestShareEnds(t *testing.T) {
	for name, end := range map[string]func(h *house, web string) error{
		"stop":   func(h *house, _ string) error { return h.ContainerStop(context.Background(), "web", "", nil) },
		"kill":   func(h *house, _ string) error { return h.ContainerKill(context.Background(), "web", "") },
		"rm -f":  func(h *house, _ string) error { return h.ContainerRemove(context.Background(), "web", true, false) },
		"exit":   func(h *house, web string) error { h.machineOf(web).Process(web).Exit(3); return nil },
		"broken": func(h *house, web string) error { h.machineOf(web).Die(nil); return nil },
	} {
		for _, rm := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				inBubble(t, func(t *testing.T, h *house) {
					web := h.run("web", "sleep", func(r *container.CreateRequest) { r.HostConfig.AutoRemove = rm })
					h.run("side", "deaf", sharingWith("web"))
					h.run("gone", "deaf", sharingWith("web"), autoRemove)
					synctest.Wait()
					gone := h.waiting("gone", container.WaitConditionRemoved)
					m := h.machineOf(web)
					if err := end(h, web); err != nil {
						t.Fatal(err)
					}
					h.wait("side", container.WaitConditionNotRunning)
					h.result(gone)
					h.torn("side")
					h.torn("web")
					h.wantState("side", container.StateExited, 137)
					if s := h.state("side"); s.Error != "the container whose virtual machine it shared has ended" {
						t.Errorf("reason: %q", s.Error)
					}
					if whole := len(m.Disks()) <= 2; !whole && name != "broken" {
						t.Errorf("disks of others were still in use: %v", m.Disks())
					}
					synctest.Wait()
					h.noMachine()
					wantConflict(t, sharersStart(h, rm || name == "rm -f"))
				})
			})
		}
	}
}

// sharersStart starts "side" without an owner; gone says that the owner is no more.
func sharersStart(h *house, gone bool) error {
	err := h.ContainerStart(context.Background(), "side")
	if gone && cerrdefs.IsNotFound(err) {
		return conflict("as expected")
	}
	if err != nil && !gone && !strings.HasPrefix(err.Error(), "cannot join network of a non running container: ") {
		h.t.Errorf("start: %v", err)
	}
	return err
}

// TestShareRestart: with a restart policy a container waits for its owner to be up again.
func TestShareRestart(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		web := h.run("web", "sleep")
		side := h.run("side", "sleep", sharingWith("web"), restartPolicy(container.RestartPolicyAlways, 0))
		synctest.Wait()
		if err := h.ContainerStop(context.Background(), "web", "", nil); err != nil {
			t.Fatal(err)
		}
		h.torn("side")
		time.Sleep(5 * time.Minute)
		h.wantState("side", container.StateRestarting, 137)
		h.start("web")
		time.Sleep(2 * time.Minute)
		h.wantState("side", container.StateRunning, 0)
		h.wantShared(web, side)
		if err := h.ContainerRestart(context.Background(), "web", "", nil); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Minute)
		h.wantShared(web, side)
		if err := h.ContainerStop(context.Background(), "web", "", nil); err != nil {
			t.Fatal(err)
		}
		h.torn("side")
		if err := h.ContainerStop(context.Background(), "side", "", nil); err != nil { // while it waits
			t.Fatal(err)
		}
		h.start("web")
		time.Sleep(2 * time.Minute)
		h.wantState("side", container.StateExited, 137)
	})
}

// TestShareRefused: docker's words for what cannot be.
func TestShareRefused(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		ctx := context.Background()
		web := h.create("web", "sleep")
		h.create("side", "sleep", sharingWith("web"))
		h.create("lost", "sleep", sharingWith("nobody"))
		says := func(what string, err error, want string) {
			t.Helper()
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v, want %s", what, err, want)
			}
		}
		says("not running", h.ContainerStart(ctx, "side"), "cannot join network of a non running container: "+web)
		says("nobody", h.ContainerStart(ctx, "lost"), "No such container: nobody")
		h.start("web")
		h.create("big", "sleep", sharingWith("web"), func(r *container.CreateRequest) { r.HostConfig.Memory = 64 << 30 })
		says("memory", h.ContainerStart(ctx, "big"), "65536 MiB of memory are more than the virtual machine of container web has, which is")
		if err := h.ContainerPause(ctx, "web"); err != nil {
			t.Fatal(err)
		}
		says("paused", h.ContainerStart(ctx, "side"), "cannot join network of a paused container: "+web)
		if err := h.ContainerUnpause(ctx, "web"); err != nil {
			t.Fatal(err)
		}
		h.start("side")
		says("pause owner", h.ContainerPause(ctx, "web"), "shares its virtual machine")
		says("pause", h.ContainerPause(ctx, "side"), "it shares the virtual machine of another container")
		says("hibernate owner", h.ContainerSaveState(ctx, "web"), "shares its virtual machine")
		says("hibernate", h.ContainerSaveState(ctx, "side"), "it cannot be saved alone")
		for what, x := range map[string]struct {
			change func(*container.CreateRequest)
			want   string
		}{
			"nothing":  {sharingWith(""), "invalid container format container:<name|id>"},
			"hostname": {func(r *container.CreateRequest) { r.Config.Hostname = "x" }, "conflicting options: hostname and the network mode"},
			"hosts":    {func(r *container.CreateRequest) { r.HostConfig.ExtraHosts = []string{"a:1.2.3.4"} }, "conflicting options: custom host-to-IP mapping and the network mode"},
			"publish":  {func(r *container.CreateRequest) { r.HostConfig.PublishAllPorts = true }, "conflicting options: port publishing and the container type network mode"},
			"expose": {func(r *container.CreateRequest) {
				r.Config.ExposedPorts = mobynet.PortSet{mobynet.MustParsePort("80/tcp"): {}}
			}, "conflicting options: port exposing and the container type network mode"},
		} {
			_, err := h.tryCreate("bad", "sleep", sharingWith("web"), x.change)
			says(what, err, x.want)
			if !cerrdefs.IsInvalidArgument(err) {
				t.Errorf("%s: class of %v", what, err)
			}
		}
		h.wantState("web", container.StateRunning, 0)
	})
}

// TestShareRecovery: what a new daemon makes of two containers in one machine.
func TestShareRecovery(t *testing.T) {
	for name, x := range map[string]struct {
		web, side func(*record)
		gone      bool                     // the machine
		want      container.ContainerState // of side
		code      int
		owner     container.ContainerState
	}{
		"both":              {nil, nil, false, container.StateRunning, 0, container.StateRunning},
		"start cut short":   {nil, booting, false, container.StateCreated, 0, container.StateRunning},
		"end cut short":     {nil, ended(7), false, container.StateExited, 7, container.StateRunning},
		"removal cut short": {nil, func(r *record) { r.Removing = true }, false, "", 0, container.StateRunning},
		"owner's end":       {ended(0), nil, false, container.StateExited, 137, container.StateExited},
		"owner's start":     {booting, booting, false, container.StateCreated, 0, container.StateCreated},
		"machine gone":      {nil, nil, true, container.StateExited, 137, container.StateExited},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, h *house) {
				web := h.run("web", "sleep")
				side := h.run("side", "lines 3", sharingWith("web"))
				synctest.Wait()
				m := h.machineOf(web)
				h.crash()
				for id, change := range map[string]func(*record){web: x.web, side: x.side} {
					if change != nil {
						h.write(id, change)
					}
				}
				if x.gone {
					m.Die(nil)
				}
				h.open()
				synctest.Wait()
				time.Sleep(time.Minute)
				code := 0
				if x.gone {
					code = 137
				}
				h.wantState("web", x.owner, code)
				if _, err := h.ContainerInspect(context.Background(), side, false); x.want == "" {
					wantNotFound(t, err)
				} else {
					h.wantState("side", x.want, x.code)
				}
				switch {
				case x.owner != container.StateRunning:
					h.noMachine()
				case x.want != container.StateRunning:
					h.wantShared(web)
				default:
					h.wantShared(web, side)
					if out := h.output("side"); out != numbers(3) {
						t.Errorf("the log has %q", out)
					}
					if err := h.ContainerStop(context.Background(), "side", "", nil); err != nil {
						t.Fatal(err)
					}
					h.torn("side")
					h.wantShared(web)
				}
			})
		})
	}
}
