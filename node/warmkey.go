package node

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/moby/moby/api/types/container"

	"github.com/cradlevm/cradle/api"
	"github.com/cradlevm/cradle/node/runspec"
)

// Labels of containers that start warm: from a shadow, which has run what they run until it was ready.
const (
	warmLabel      = "dev.cradle.warm"       // "true"
	warmReadyLabel = "dev.cradle.warm.ready" // a command for /bin/sh that succeeds once it is ready
	warmAfterLabel = "dev.cradle.warm.after" // else, without a healthcheck: how long it must have been quiet
)

// coldReason says why a container that wants to start warm cannot; empty when it can, or does not want to.
func (n *Node) coldReason(rec record) string {
	if rec.Config.Labels[warmLabel] != "true" {
		return ""
	}
	if text := rec.Config.Labels[warmAfterLabel]; text != "" {
		if d, err := time.ParseDuration(text); err != nil || d <= 0 || d > shadowLimit {
			return fmt.Sprintf("%s is no duration up to %v", strconv.Quote(text), shadowLimit)
		}
	}
	if rec.Dir != "" {
		return "it runs from a summoned directory"
	}
	if rec.HostConfig.NetworkMode.IsContainer() {
		return "it shares another container's virtual machine"
	}
	if list := rec.fileBinds(); len(list) > 0 {
		return "it has the file " + list[0].Source + " of the host's, which may be a secret"
	}
	if list := rec.namedVolumes(); len(list) > 0 {
		return "it has the volume " + list[0].Name
	}
	img, err := n.options.Images.Get(rec.ImageID)
	if err != nil {
		return "" // its start says so
	}
	if what := secretIn(rec.Config, img.Config.Config); what != "" {
		return what + ", which may be a secret: none goes into a warm image"
	}
	return ""
}

// notWarm is coldReason that also knows of what has failed before.
func (n *Node) notWarm(ctx context.Context, rec record) string {
	if why := n.coldReason(rec); why != "" {
		return why
	}
	if key := n.sameness(ctx, rec); key != "" {
		if why, at := n.warmth.failed(key); why != "" {
			return fmt.Sprintf("its warm image could not be made at %s, and is not tried again for %v after that: %s", at.Format(time.DateTime), warmRetry, why)
		}
	}
	return ""
}

// warmKey names the warm image that a container is to start from; empty when it is not to start warm. Only the first start of a container can be:
// afterwards its disk is its own.
func (c *ctr) warmKey(ctx context.Context, rec record) string {
	if c.node.coldReason(rec) != "" {
		return ""
	}
	if _, err := os.Stat(filepath.Join(c.dir(), scratchName)); !errors.Is(err, fs.ErrNotExist) {
		return ""
	}
	return c.node.sameness(ctx, rec)
}

// sameness names all that what a container does depends on, but for who it is; empty when it is not to start warm.
func (n *Node) sameness(ctx context.Context, rec record) string {
	if n.warmth == nil || rec.Config.Labels[warmLabel] != "true" {
		return ""
	}
	f, err := n.form(ctx)
	if err != nil {
		return ""
	}
	config, host := rec.Config, rec.HostConfig
	config.Hostname, config.Image = "", ""
	config.AttachStdin, config.AttachStdout, config.AttachStderr = false, false, false
	config.Labels = map[string]string{}
	for _, label := range []string{warmReadyLabel, warmAfterLabel} {
		config.Labels[label] = rec.Config.Labels[label]
	}
	host.AutoRemove, host.RestartPolicy, host.LogConfig = false, container.RestartPolicy{}, container.LogConfig{}
	host.PortBindings, host.PublishAllPorts, config.ExposedPorts = nil, false, nil // which no guest is told of
	host.ContainerIDFile, host.ConsoleSize = "", [2]uint{}
	cpus, memory := runspec.VMSize(&host, n.settings)
	scratch, err := runspec.ScratchSize(&host, n.settings)
	if err != nil {
		return ""
	}
	// What the agent is asked for has, beside what was configured, what cradle adds to it: that may change with its version and its settings.
	request, err := runspec.Create(runspec.Container{Config: &config, Host: &host}, n.settings)
	if err != nil {
		return ""
	}
	b, err := json.Marshal(struct {
		Form            form
		Image           string
		Config          container.Config
		Host            container.HostConfig
		Request         api.CreateRequest
		Seccomp         []byte // which is no part of the request's JSON
		CPUs            int
		Memory, Scratch int64
	}{f, rec.ImageID, config, host, request, request.Seccomp, cpus, memory, scratch})
	if err != nil {
		return ""
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:16])
}
