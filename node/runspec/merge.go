package runspec

import (
	"maps"
	"slices"
	"strings"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
)

// Merge completes config with what the image says and returns the result; the arguments stay as they are. The rules
// are dockerd's: the client's word goes first; a client's entrypoint discards the image's command; an entrypoint of
// one empty string (docker run --entrypoint "") means none at all; maps and environment are joined.
// Errors: ErrInvalidArgument ("no command specified", or a port of the image that is none).
func Merge(config *container.Config, img dockerspec.DockerOCIImage) (*container.Config, error) {
	out := *config
	from := img.Config
	mergeCommand(&out, from)

	ports, err := mergePorts(config.ExposedPorts, from.ExposedPorts)
	if err != nil {
		return nil, err
	}
	out.ExposedPorts = ports
	out.Env = mergeEnv(config.Env, from.Env)
	out.Labels = joined(config.Labels, from.Labels)
	if out.Labels == nil {
		out.Labels = map[string]string{}
	}
	out.Volumes = joined(config.Volumes, from.Volumes)
	out.Healthcheck = mergeHealth(config.Healthcheck, from.Healthcheck)
	if out.User == "" {
		out.User = from.User
	}
	if out.WorkingDir == "" {
		out.WorkingDir = from.WorkingDir
	}
	if out.StopSignal == "" {
		out.StopSignal = from.StopSignal
	}
	if len(out.Shell) == 0 {
		out.Shell = slices.Clone(from.Shell)
	}
	if len(out.OnBuild) == 0 {
		out.OnBuild = slices.Clone(from.OnBuild)
	}
	if len(out.Entrypoint) == 0 && len(out.Cmd) == 0 {
		return nil, invalid("no command specified")
	}
	return &out, nil
}

// mergeCommand settles entrypoint and command.
func mergeCommand(out *container.Config, from dockerspec.DockerOCIImageConfig) {
	out.Entrypoint = slices.Clone(out.Entrypoint)
	out.Cmd = slices.Clone(out.Cmd)
	if len(out.Entrypoint) == 0 {
		if len(out.Cmd) == 0 {
			out.Cmd = slices.Clone(from.Cmd)
		}
		// nil says nothing; an empty list is the client's wish for no entrypoint.
		if out.Entrypoint == nil {
			out.Entrypoint = slices.Clone(from.Entrypoint)
		}
	}
	if len(out.Entrypoint) == 1 && out.Entrypoint[0] == "" {
		out.Entrypoint = nil
	}
}

func mergePorts(config network.PortSet, from map[string]struct{}) (network.PortSet, error) {
	if len(config) == 0 && len(from) == 0 {
		return config, nil
	}
	out := network.PortSet{}
	maps.Copy(out, config)
	for name := range from {
		// An image may expose a range, "8000-8010/tcp".
		r, err := network.ParsePortRange(name)
		if err != nil {
			return nil, invalid("invalid port specification: %q", name)
		}
		for p := range r.All() {
			out[p] = struct{}{}
		}
	}
	return out, nil
}

// mergeEnv appends the image's variables that the client does not mention. A client's bare "KEY" counts as
// mentioning it: it removes the variable when the process's environment is made.
func mergeEnv(config, from []string) []string {
	out := slices.Clone(config)
	seen := make(map[string]bool, len(config))
	for _, e := range config {
		key, _, _ := strings.Cut(e, "=")
		seen[key] = true
	}
	for _, e := range from {
		key, _, _ := strings.Cut(e, "=")
		if !seen[key] {
			out = append(out, e)
		}
	}
	return out
}

// joined is from with config's entries over it; nil when both are empty.
func joined[V any](config, from map[string]V) map[string]V {
	if len(config) == 0 && len(from) == 0 {
		return nil
	}
	out := make(map[string]V, len(config)+len(from))
	maps.Copy(out, from)
	maps.Copy(out, config)
	return out
}

func mergeHealth(config, from *dockerspec.HealthcheckConfig) *dockerspec.HealthcheckConfig {
	if config == nil && from == nil {
		return nil
	}
	if config == nil {
		config = &dockerspec.HealthcheckConfig{}
	}
	if from == nil {
		from = &dockerspec.HealthcheckConfig{}
	}
	out := *config
	if len(out.Test) == 0 {
		out.Test = from.Test
	}
	out.Test = slices.Clone(out.Test)
	out.Interval = firstSet(out.Interval, from.Interval)
	out.Timeout = firstSet(out.Timeout, from.Timeout)
	out.StartPeriod = firstSet(out.StartPeriod, from.StartPeriod)
	out.StartInterval = firstSet(out.StartInterval, from.StartInterval)
	out.Retries = firstSet(out.Retries, from.Retries)
	return &out
}

func firstSet[T comparable](a, b T) T {
	var zero T
	if a != zero {
		return a
	}
	return b
}
