package node

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/distribution/reference"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cradlevm/cradle/dockerapi"
	"github.com/cradlevm/cradle/image"
	"github.com/cradlevm/cradle/sandbox"
)

// ContainerCommit implements dockerapi.Backend.
func (n *Node) ContainerCommit(ctx context.Context, name string, o dockerapi.CommitOptions) (string, error) {
	var img image.Image
	err := n.filesOf(ctx, name, "", func(ctx context.Context, c *ctr, vm *sandbox.Sandbox) error {
		rec := c.snapshot()
		if rec.Dir != "" {
			return unsupported("committing a container that runs from a summoned directory is not supported")
		}
		parent, err := n.options.Images.Get(rec.ImageID)
		if err != nil {
			return imageError(err)
		}
		config, err := childConfig(parent, rec, o)
		if err != nil {
			return err
		}
		if o.Pause && rec.Status == container.StateRunning {
			if err := vm.Freeze(ctx, c.id, true); err != nil {
				return err
			}
			defer c.thaw(vm)
		}
		layer, err := vm.Layer(ctx, c.id)
		if err != nil {
			return err
		}
		defer layer.Close()
		if img, err = n.options.Images.Commit(ctx, parent, layer, o.Reference, config); err != nil {
			return imageError(err)
		}
		attributes := map[string]string{"comment": o.Comment, "imageID": img.ID}
		if named, err := reference.ParseNormalizedNamed(o.Reference); err == nil {
			attributes["imageRef"] = reference.FamiliarString(reference.TagNameOnly(named))
		}
		c.emit(events.ActionCommit, attributes)
		return nil
	})
	return img.ID, err
}

// thaw lets a container go on after its commit, unless it was paused meanwhile: then it is unpause's to do.
func (c *ctr) thaw(vm *sandbox.Sandbox) {
	c.still.mu.Lock()
	defer c.still.mu.Unlock()
	if c.snapshot().Status == container.StatePaused {
		return
	}
	ctx, cancel := context.WithTimeout(c.node.ctx, teardownLimit) // the next daemon does it where this one ends
	defer cancel()
	if err := vm.Freeze(ctx, c.id, false); err != nil && !errors.Is(err, sandbox.ErrGone) && c.node.ctx.Err() == nil {
		c.node.options.Log.Error("let the container go on after its commit", "container", c.id, "err", err)
	}
}

// childConfig is the config of a commit's image: the container's, or what the client gives completed by it, and then
// the client's changes.
func childConfig(parent image.Image, rec record, o dockerapi.CommitOptions) (dockerspec.DockerOCIImage, error) {
	own := imageConfig(&rec.Config)
	given := own
	if o.Config != nil {
		given = imageConfig(o.Config)
	}
	if err := applyChanges(&given, o.Changes); err != nil {
		return dockerspec.DockerOCIImage{}, err
	}
	completeConfig(&given, own)
	now := time.Now().UTC()
	out := dockerspec.DockerOCIImage{Config: given}
	out.Created, out.Author, out.Platform = &now, o.Author, parent.Config.Platform
	out.History = []ocispec.History{{
		Created: &now, Author: o.Author, Comment: o.Comment, CreatedBy: strings.Join(rec.Config.Cmd, " "),
	}}
	return out, nil
}

// imageConfig is the part of a container's config that an image has.
func imageConfig(c *container.Config) dockerspec.DockerOCIImageConfig {
	out := dockerspec.DockerOCIImageConfig{
		ImageConfig: ocispec.ImageConfig{
			User: c.User, Env: slices.Clone(c.Env), Entrypoint: slices.Clone(c.Entrypoint), Cmd: slices.Clone(c.Cmd),
			WorkingDir: c.WorkingDir, Labels: maps.Clone(c.Labels), StopSignal: c.StopSignal, Volumes: maps.Clone(c.Volumes),
		},
		DockerOCIImageConfigExt: dockerspec.DockerOCIImageConfigExt{
			Healthcheck: c.Healthcheck, OnBuild: slices.Clone(c.OnBuild), Shell: slices.Clone(c.Shell),
		},
	}
	for port := range c.ExposedPorts {
		if out.ExposedPorts == nil {
			out.ExposedPorts = map[string]struct{}{}
		}
		out.ExposedPorts[port.String()] = struct{}{}
	}
	return out
}

// completeConfig fills what config leaves open from the container's own, as docker does.
func completeConfig(config *dockerspec.DockerOCIImageConfig, own dockerspec.DockerOCIImageConfig) {
	for _, s := range []struct {
		to   *string
		from string
	}{{&config.User, own.User}, {&config.WorkingDir, own.WorkingDir}, {&config.StopSignal, own.StopSignal}} {
		if *s.to == "" {
			*s.to = s.from
		}
	}
	if len(config.Entrypoint) == 0 {
		if len(config.Cmd) == 0 {
			config.Cmd = own.Cmd
		}
		config.Entrypoint = own.Entrypoint
	}
	for _, pair := range own.Env {
		key, _, _ := strings.Cut(pair, "=")
		if !slices.ContainsFunc(config.Env, func(e string) bool { return strings.HasPrefix(e, key+"=") || e == key }) {
			config.Env = append(config.Env, pair)
		}
	}
	config.Labels = withMissing(config.Labels, own.Labels)
	config.Volumes = withMissing(config.Volumes, own.Volumes)
	config.ExposedPorts = withMissing(config.ExposedPorts, own.ExposedPorts)
	if config.Healthcheck == nil {
		config.Healthcheck = own.Healthcheck
	}
}

func withMissing[V any](to, from map[string]V) map[string]V {
	for k, v := range from {
		if _, ok := to[k]; !ok {
			if to == nil {
				to = map[string]V{}
			}
			to[k] = v
		}
	}
	return to
}
