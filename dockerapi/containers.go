package dockerapi

import (
	"cmp"
	"context"
	"fmt"
	"net/http"

	"github.com/moby/moby/api/types/container"
)

func (s *server) containerRoutes() []route {
	b := s.b
	return []route{
		{"POST", "/containers/create", "", s.containerCreate},
		{"GET", "/containers/json", "", s.containerList},
		{"POST", "/containers/prune", "", s.containerPrune},
		{"GET", "/containers/{id}/json", "", s.containerInspect},
		{"POST", "/containers/{id}/start", "", s.containerStart},
		{"POST", "/containers/{id}/stop", "", stopWith(b.ContainerStop)},
		{"POST", "/containers/{id}/restart", "", stopWith(b.ContainerRestart)},
		{"POST", "/containers/{id}/kill", "", s.containerKill},
		{"POST", "/containers/{id}/pause", "", byID(b.ContainerPause)},
		{"POST", "/containers/{id}/unpause", "", byID(b.ContainerUnpause)},
		{"POST", "/containers/{id}/wait", "", s.containerWait},
		{"POST", "/containers/{id}/resize", "", resizeWith(b.ContainerResize)},
		{"POST", "/containers/{id}/rename", "", s.containerRename},
		{"DELETE", "/containers/{id}", "", s.containerRemove},
		{"GET", "/containers/{id}/logs", "", s.containerLogs},
		{"POST", "/containers/{id}/attach", "", s.containerAttach},
		{"GET", "/containers/{id}/attach/ws", "", s.containerAttachWS},
		{"GET", "/containers/{id}/top", "", s.containerTop},
		{"GET", "/containers/{id}/stats", "", s.containerStats},
		{"POST", "/containers/{id}/exec", "", s.execCreate},
		{"POST", "/exec/{id}/start", "", s.execStart},
		{"GET", "/exec/{id}/json", "", s.execInspect},
		{"POST", "/exec/{id}/resize", "", resizeWith(b.ExecResize)},
		{"GET", "/containers/{id}/checkpoints", "", refused("Listing checkpoints")},
		{"POST", "/containers/{id}/checkpoints", "", refused("Creating a checkpoint")},
		{"DELETE", "/containers/{id}/checkpoints/{checkpoint}", "", refused("Removing a checkpoint")},
	}
}

// refused is the row of a feature that cradle does not have yet.
func refused(feature string) handler {
	return func(*call) error { return unsupported(feature) }
}

// byID is an operation that takes a container and answers with nothing.
func byID(do func(ctx context.Context, name string) error) handler {
	return func(c *call) error {
		if err := do(c.r.Context(), c.id()); err != nil {
			return err
		}
		return c.empty(http.StatusNoContent)
	}
}

// stopWith is stop or restart.
func stopWith(do func(ctx context.Context, name, signal string, timeout *int) error) handler {
	return func(c *call) error {
		timeout, err := c.number("t")
		if err != nil {
			return err
		}
		if err := do(c.r.Context(), c.id(), c.query.Get("signal"), timeout); err != nil {
			return err
		}
		return c.empty(http.StatusNoContent)
	}
}

// resizeWith resizes a terminal.
func resizeWith(do func(ctx context.Context, id string, height, width uint) error) handler {
	return func(c *call) error {
		height, width, err := c.size()
		if err != nil {
			return err
		}
		if err := do(c.r.Context(), c.id(), height, width); err != nil {
			return err
		}
		return c.empty(http.StatusOK)
	}
}

func (s *server) containerList(c *call) error {
	limit, err := c.number("limit")
	if err != nil {
		return err
	}
	filters, err := c.filters("ancestor", "before", "exited", "expose", "health", "id", "isolation", "is-task", "label",
		"name", "network", "publish", "since", "status", "volume")
	if err != nil {
		return err
	}
	for _, key := range []string{"before", "since"} { // filters too, in the words of old clients
		if v := c.query.Get(key); v != "" {
			filters[key] = map[string]bool{v: true}
		}
	}
	n := 0
	if limit != nil {
		n = max(0, *limit) // clients say -1 for "all"
	}
	items, err := s.b.ContainerList(c.r.Context(), c.flag("all"), n, c.flag("size"), filters)
	if err != nil {
		return err
	}
	return list(c, items)
}

func (s *server) containerInspect(c *call) error {
	r, err := s.b.ContainerInspect(c.r.Context(), c.id(), c.flag("size"))
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, c.shapeInspect(r))
}

func (s *server) containerStart(c *call) error {
	if err := c.refuse("Starting from a checkpoint", "checkpoint", "checkpoint-dir"); err != nil {
		return err
	}
	// Some clients send "{}" or a line's end out of habit; anything longer is a HostConfig, meant to have an effect.
	if c.r.ContentLength > 7 || c.r.ContentLength == -1 {
		return invalid("starting container with non-empty request body was deprecated since API v1.22 and removed in v1.24")
	}
	return byID(s.b.ContainerStart)(c)
}

func (s *server) containerKill(c *call) error {
	signal := cmp.Or(c.query.Get("signal"), "SIGKILL")
	if err := s.b.ContainerKill(c.r.Context(), c.id(), signal); err != nil {
		return err
	}
	return c.empty(http.StatusNoContent)
}

func (s *server) containerRename(c *call) error {
	to := c.query.Get("name")
	if to == "" {
		return invalid("new name cannot be empty")
	}
	if err := s.b.ContainerRename(c.r.Context(), c.id(), to); err != nil {
		return err
	}
	return c.empty(http.StatusNoContent)
}

func (s *server) containerRemove(c *call) error {
	if err := c.refuse("Removing a link", "link"); err != nil {
		return err
	}
	if err := s.b.ContainerRemove(c.r.Context(), c.id(), c.flag("force"), c.flag("v")); err != nil {
		return err
	}
	return c.empty(http.StatusNoContent)
}

func (s *server) containerPrune(c *call) error {
	filters, err := c.filters("label", "label!", "until")
	if err != nil {
		return err
	}
	report, err := s.b.ContainerPrune(c.r.Context(), filters)
	if err != nil {
		return err
	}
	report.ContainersDeleted = orList(report.ContainersDeleted)
	return c.json(http.StatusOK, report)
}

func (s *server) containerTop(c *call) error {
	top, err := s.b.ContainerTop(c.r.Context(), c.id(), cmp.Or(c.query.Get("ps_args"), "-ef"))
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, top)
}

// containerWait sends the headers before the exit: they tell the client that from now on it misses nothing, and
// only then does it start the container.
func (s *server) containerWait(c *call) error {
	condition := container.WaitCondition(c.query.Get("condition"))
	switch condition {
	case "":
		condition = container.WaitConditionNotRunning
	case container.WaitConditionNotRunning, container.WaitConditionNextExit, container.WaitConditionRemoved:
	default:
		return invalid(fmt.Sprintf("invalid condition: %q", condition))
	}
	ctx := c.r.Context()
	exit, err := s.b.ContainerWait(ctx, c.id(), condition)
	if err != nil {
		return err
	}
	stream := &jsonStream{c: c, contentType: "application/json"}
	stream.open()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case result := <-exit:
		answer := container.WaitResponse{StatusCode: int64(result.StatusCode)}
		if result.Err != nil {
			answer.Error = &container.WaitExitError{Message: ErrorText(result.Err)}
		}
		return stream.send(answer)
	}
}

func (s *server) containerStats(c *call) error {
	stream, oneShot := c.flagOr("stream", true), c.flag("one-shot")
	if stream && oneShot {
		return invalid("cannot have stream=true and one-shot=true")
	}
	out := &jsonStream{c: c, contentType: "application/json"}
	return s.b.ContainerStats(c.r.Context(), c.id(), stream, oneShot, func(r container.StatsResponse) error {
		return out.send(r)
	})
}
