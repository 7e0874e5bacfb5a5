package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/blkiodev"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"

	"github.com/cradlevm/cradle/cmd/cradle/front"
	"github.com/cradlevm/cradle/dockerapi"
	"github.com/cradlevm/cradle/node"
)

// addRunHandler serves package front: a run, from the container's creation to its exit code, in one request.
func addRunHandler(mux *http.ServeMux, n *node.Node) {
	mux.HandleFunc("POST /cradle/v1/run", func(w http.ResponseWriter, r *http.Request) {
		if err := runOnce(n, w, r); err != nil {
			dockerapi.WriteError(w, err)
		}
	})
}

// runOnce answers a run. An error means that nothing has been answered and that there is no container.
func runOnce(n *node.Node, w http.ResponseWriter, r *http.Request) error {
	words, err := readWords(w, r)
	if err != nil {
		return err
	}
	o, err := parseRun(words)
	if err != nil {
		return err
	}
	ctx := r.Context()
	created, err := n.ContainerCreate(ctx, o.name, nil, o.request)
	if err != nil {
		return err
	}
	reply := &recordReply{w: w}
	defer reply.end()
	reply.setHead()
	w.Header().Set(front.IDField, created.ID)
	w.WriteHeader(http.StatusOK)
	if err := http.NewResponseController(w).Flush(); err != nil {
		return nil // nobody is there to see it start
	}
	stderr := recordStream{reply, front.Stderr}
	for _, warning := range created.Warnings {
		fmt.Fprintln(stderr, "WARNING:", warning)
	}
	code, err := o.start(ctx, n, created.ID, reply)
	switch {
	case ctx.Err() != nil: // the client has gone, or the daemon ends: the container goes on
		return nil
	case err != nil:
		code = failure(stderr, err)
	}
	recordStream{reply, front.Exit}.Write([]byte{byte(code)})
	return nil
}

// start starts the container and stays until it has ended, when it is not detached; ctx ends that, but not a start.
func (o *runOptions) start(ctx context.Context, n *node.Node, id string, reply *recordReply) (code int, err error) {
	stdout, stderr := recordStream{reply, front.Stdout}, recordStream{reply, front.Stderr}
	until := container.WaitConditionNextExit
	if o.request.HostConfig.AutoRemove {
		until = container.WaitConditionRemoved
	}
	var watch func(dockerapi.Streams) error
	if o.detach {
		fmt.Fprintln(stdout, id)
	} else {
		watch, _, err = n.ContainerAttach(ctx, id, dockerapi.AttachOptions{Stream: true, Stdout: true, Stderr: true})
		if err != nil {
			return 0, err
		}
	}
	exit, err := n.ContainerWait(ctx, id, until)
	if err != nil {
		return 0, err
	}
	if err := n.ContainerStart(ctx, id); err != nil && !errdefs.IsNotModified(err) {
		if until == container.WaitConditionRemoved {
			<-exit
		}
		return 0, err
	}
	if o.detach {
		return 0, nil
	}
	if err := watch(dockerapi.Streams{Stdout: stdout, Stderr: stderr}); err != nil {
		return 0, err
	}
	result := <-exit
	return result.StatusCode, result.Err
}

// failure tells of an error of the daemon's as docker's library does, whose exit code it returns.
func failure(stderr io.Writer, err error) (code int) {
	text := "cradle: Error response from daemon: " + strings.TrimSpace(dockerapi.ErrorText(err))
	fmt.Fprintf(stderr, "%s\n\nRun 'cradle run --help' for more information\n", text)
	for _, class := range []struct {
		code  int
		words []string
	}{
		{127, []string{"executable file not found", "no such file or directory", "system cannot find the file specified"}},
		{126, []string{syscall.EACCES.Error(), syscall.EISDIR.Error()}},
	} {
		for _, words := range class.words {
			if strings.Contains(text, words) {
				return class.code
			}
		}
	}
	return 125
}

// runOptions is what is to be run.
type runOptions struct {
	name    string
	detach  bool
	request container.CreateRequest
}

// parseRun reads the words of package front's request. What it refuses is left to docker's library.
func parseRun(words []string) (*runOptions, error) {
	o := &runOptions{request: newRunRequest()}
	config, host := o.request.Config, o.request.HostConfig
	given := map[string]bool{}
	for len(words) > 0 && words[0] != "" {
		setting := words[0]
		words = words[1:]
		key, value, _ := strings.Cut(setting, "=")
		if key+"=" == front.SetEnv {
			key, _, _ = strings.Cut(value, "=")
			key = front.SetEnv + key
			config.Env = append(config.Env, value)
		} else if !o.set(setting) {
			return nil, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("unknown setting %q", setting))
		}
		if given[key] {
			return nil, errdefs.ErrInvalidArgument.WithMessage(key + " is given twice")
		}
		given[key] = true
	}
	if len(words) < 2 {
		return nil, errdefs.ErrInvalidArgument.WithMessage("no image is given")
	}
	if _, err := reference.ParseAnyReference(words[1]); err != nil {
		return nil, fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	config.Image = words[1]
	if len(words) > 2 {
		config.Cmd = words[2:]
	}
	config.AttachStdout, config.AttachStderr = !o.detach, !o.detach
	if host.NetworkMode == "" {
		host.NetworkMode = network.NetworkDefault
		o.request.NetworkingConfig.EndpointsConfig[network.NetworkDefault] = &network.EndpointSettings{}
	}
	return o, nil
}

// set takes a setting other than a variable of the environment.
func (o *runOptions) set(setting string) bool {
	host := o.request.HostConfig
	switch key, value, _ := strings.Cut(setting, "="); {
	case setting == front.SetRemove:
		host.AutoRemove = true
	case setting == front.SetDetach:
		o.detach = true
	case value == "":
		return false
	case key+"=" == front.SetNetwork:
		host.NetworkMode = container.NetworkMode(value)
	case key+"=" == front.SetName:
		o.name = value
	case key+"=" == front.SetSize:
		_, err := fmt.Sscanf(value, "%dx%d", &host.ConsoleSize[0], &host.ConsoleSize[1])
		return err == nil
	default:
		return false
	}
	return true
}

// newRunRequest is what docker's command line asks for when it is given no flags. What it sends as empty and not as
// null is empty here, too.
func newRunRequest() container.CreateRequest {
	swappiness, pids, oom := int64(-1), int64(0), false
	none := []*blkiodev.ThrottleDevice{}
	return container.CreateRequest{
		Config: &container.Config{Volumes: map[string]struct{}{}, Labels: map[string]string{}},
		HostConfig: &container.HostConfig{
			LogConfig:     container.LogConfig{Config: map[string]string{}},
			PortBindings:  network.PortMap{},
			RestartPolicy: container.RestartPolicy{Name: container.RestartPolicyDisabled},
			DNSOptions:    []string{}, DNSSearch: []string{},
			Resources: container.Resources{
				MemorySwappiness: &swappiness, PidsLimit: &pids, OomKillDisable: &oom,
				Devices:           []container.DeviceMapping{},
				BlkioWeightDevice: []*blkiodev.WeightDevice{}, BlkioDeviceReadBps: none, BlkioDeviceWriteBps: none,
				BlkioDeviceReadIOps: none, BlkioDeviceWriteIOps: none,
			},
		},
		NetworkingConfig: &network.NetworkingConfig{EndpointsConfig: map[string]*network.EndpointSettings{}},
	}
}
