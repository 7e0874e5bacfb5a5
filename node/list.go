package node

import (
	"context"
	"fmt"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"

	"github.com/cradlevm/cradle/dockerapi"
	"github.com/cradlevm/cradle/image"
	"github.com/cradlevm/cradle/node/runspec"
)

// ContainerList implements dockerapi.Backend: newest first.
func (n *Node) ContainerList(_ context.Context, all bool, limit int, size bool, filters dockerapi.Filters) ([]container.Summary, error) {
	err := knownFilters(filters, "id", "name", "label", "status", "exited", "ancestor", "before", "since", "health", "is-task", "network", "volume", "publish", "expose")
	if err != nil {
		return nil, err
	}
	for s := range filters["status"] {
		if err := container.ValidateContainerState(container.ContainerState(s)); err != nil {
			return nil, invalid("invalid filter 'status=%s'", s)
		}
	}
	for s := range filters["exited"] {
		if _, err := strconv.Atoi(s); err != nil {
			return nil, invalid("%v", err)
		}
	}
	match, err := n.containerFilter(filters)
	if err != nil {
		return nil, err
	}
	var found []*ctr
	for _, c := range n.all() {
		r := c.snapshot()
		if !all && limit <= 0 && len(filters["status"]) == 0 && len(filters["exited"]) == 0 && !active(r.Status) {
			continue
		}
		if match(c, r) {
			found = append(found, c)
		}
	}
	sort.Slice(found, func(i, j int) bool { return found[i].snapshot().Created.After(found[j].snapshot().Created) })
	if limit > 0 && len(found) > limit {
		found = found[:limit]
	}
	out := make([]container.Summary, 0, len(found))
	for _, c := range found {
		out = append(out, c.summary(size))
	}
	return out, nil
}

// containerFilter makes one predicate of docker's filters: any value of a key, every key.
func (n *Node) containerFilter(filters dockerapi.Filters) (func(*ctr, record) bool, error) {
	var before, since time.Time
	for key, t := range map[string]*time.Time{"before": &before, "since": &since} {
		for name := range filters[key] {
			c, err := n.find(name)
			if err != nil {
				return nil, err
			}
			*t = c.snapshot().Created
		}
	}
	ancestors := map[string]bool{}
	for ref := range filters["ancestor"] {
		ancestors[ref] = true
		if img, err := n.options.Images.Get(ref); err == nil {
			ancestors[img.ID] = true
		}
	}
	any := func(key string, f func(value string) bool) bool {
		if len(filters[key]) == 0 {
			return true
		}
		for v := range filters[key] {
			if f(v) {
				return true
			}
		}
		return false
	}
	return func(c *ctr, r record) bool {
		return any("id", func(v string) bool { return strings.HasPrefix(r.ID, v) }) &&
			any("name", func(v string) bool { return matchName(v, r.Name) }) &&
			matchesLabels(r.Config.Labels, filters["label"]) &&
			any("status", func(v string) bool { return v == string(r.Status) }) &&
			any("exited", func(v string) bool {
				return r.Status == container.StateExited && v == strconv.Itoa(r.ExitCode)
			}) &&
			any("ancestor", func(string) bool { return ancestors[r.ImageID] || ancestors[r.Config.Image] }) &&
			any("health", func(v string) bool { return v == string(c.healthStatus()) }) &&
			any("is-task", func(v string) bool { return v == "false" || v == "0" }) &&
			any("network", func(v string) bool { return onNetwork(&r, v) }) &&
			any("volume", func(v string) bool { return hasVolume(&r, v) }) &&
			any("publish", func(string) bool { return false }) &&
			any("expose", func(v string) bool {
				return !r.HostConfig.NetworkMode.IsNone() && exposes(r.Config.ExposedPorts, v) // nobody could reach them
			}) &&
			(before.IsZero() || r.Created.Before(before)) && (since.IsZero() || r.Created.After(since))
	}, nil
}

// matchName is docker's: the value is part of the name, or a pattern with its anchors.
func matchName(pattern, name string) bool {
	exact := strings.HasPrefix(pattern, "^") && strings.HasSuffix(pattern, "$")
	bare := strings.TrimPrefix(strings.TrimSuffix(strings.TrimPrefix(pattern, "^"), "$"), "/")
	switch {
	case exact:
		return name == bare
	case strings.HasPrefix(pattern, "^") || strings.HasPrefix(pattern, "/"):
		return strings.HasPrefix(name, bare)
	case strings.HasSuffix(pattern, "$"):
		return strings.HasSuffix(name, bare)
	}
	return strings.Contains(name, bare)
}

// onNetwork tells whether a container is on the network of this name or id.
func onNetwork(r *record, network string) bool {
	if r.HostConfig.NetworkMode.IsNone() {
		return network == "none" || network == noneNetworkID
	}
	return slices.ContainsFunc(r.Links, func(l link) bool {
		return l.Name == network || l.Endpoint != nil && l.Endpoint.Network == network
	})
}

// hasVolume tells whether a container has the volume of this name, or one at this path.
func hasVolume(r *record, v string) bool {
	_, ok := r.Config.Volumes[v]
	return ok || slices.ContainsFunc(r.namedVolumes(), func(n runspec.Volume) bool { return n.Name == v || n.Path == v })
}

func exposes(ports network.PortSet, v string) bool {
	for p := range ports {
		if p.String() == v || strings.TrimSuffix(p.String(), "/tcp") == v {
			return true
		}
	}
	return false
}

// summary is the container's row in a list.
func (c *ctr) summary(size bool) container.Summary {
	r := c.snapshot()
	s := container.Summary{
		ID: r.ID, Names: []string{"/" + r.Name}, Image: r.Config.Image, ImageID: r.ImageID,
		Command: commandLine(r.Config), Created: r.Created.Unix(), Ports: portSummary(r),
		Labels: r.Config.Labels, State: r.Status, Status: statusText(r, c.healthStatus()),
		NetworkSettings: &container.NetworkSettingsSummary{Networks: endpointsOf(r)},
		Mounts:          c.mounts(r),
	}
	s.HostConfig.NetworkMode = string(r.HostConfig.NetworkMode)
	if s.Labels == nil {
		s.Labels = map[string]string{}
	}
	s.Health = &container.HealthSummary{Status: c.healthStatus()}
	if size {
		s.SizeRw = c.diskBytes()
		if img, _, err := c.image(r); err == nil {
			s.SizeRootFs = s.SizeRw + img.Size
		}
	}
	return s
}

// commandLine is what `ps` shows.
func commandLine(c container.Config) string {
	var words []string
	for _, w := range append(append([]string{}, c.Entrypoint...), c.Cmd...) {
		if strings.ContainsAny(w, " \t\n'\"") {
			w = "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
		}
		words = append(words, w)
	}
	return strings.Join(words, " ")
}

// statusText is docker's: "Up 3 minutes (healthy)", "Exited (0) 2 hours ago", "Created".
func statusText(r record, health container.HealthStatus) string {
	since := func(t time.Time) string { return units.HumanDuration(time.Since(t)) }
	switch r.Status {
	case container.StatePaused:
		return "Up " + since(r.Started) + " (Paused)"
	case container.StateRunning:
		switch health {
		case container.NoHealthcheck, "":
			return "Up " + since(r.Started)
		case container.Starting:
			return "Up " + since(r.Started) + " (health: starting)"
		}
		return fmt.Sprintf("Up %s (%s)", since(r.Started), health)
	case container.StateRestarting:
		return fmt.Sprintf("Restarting (%d) %s ago", r.ExitCode, since(r.Finished))
	case container.StateExited:
		if r.Hibernated {
			return "Hibernated " + since(r.Finished) + " ago"
		}
		return fmt.Sprintf("Exited (%d) %s ago", r.ExitCode, since(r.Finished))
	}
	return "Created"
}

func platformOf(img image.Image) string {
	p := img.Config.OS + "/" + img.Config.Architecture
	if img.Config.Variant != "" {
		p += "/" + img.Config.Variant
	}
	return p
}
