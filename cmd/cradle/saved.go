package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"

	"github.com/docker/cli/cli"
	"github.com/docker/cli/cli/command"
	"github.com/spf13/cobra"
)

// newCloneCommand is `clone`: containers that go on from where a running one is.
func newCloneCommand(docker command.Cli, d *daemonDialer) *cobra.Command {
	var count int
	var name string
	cmd := &cobra.Command{
		Use:   "clone [OPTIONS] CONTAINER",
		Short: "Fork a running container",
		Long: "Fork a running container: make others that go on from where it is, each with a copy of its memory and its disk\n" +
			"and with an identity of its own (id, name, hostname, random numbers). Their ids are printed.",
		Args: cli.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			query := url.Values{"count": {strconv.Itoa(count)}}
			if name != "" {
				query.Set("name", name)
			}
			resp, err := d.call(cmd.Context(), http.MethodPost, "containers/"+args[0]+"/clone", query)
			if err != nil {
				return err
			}
			var report struct{ IDs []string }
			if err := readAnswer(resp, 1<<20, &report); err != nil {
				return err
			}
			for _, id := range report.IDs {
				fmt.Fprintln(docker.Out(), id)
			}
			return nil
		},
		DisableFlagsInUseLine: true,
	}
	cmd.Flags().IntVarP(&count, "count", "n", 1, "How many to make")
	cmd.Flags().StringVar(&name, "name", "", "Name of the clone; of several, -1, -2, ... are added")
	return cmd
}

// newSaveStateCommand is `save-state`: hibernation.
func newSaveStateCommand(docker command.Cli, d *daemonDialer) *cobra.Command {
	return &cobra.Command{
		Use:   "save-state CONTAINER [CONTAINER...]",
		Short: "Hibernate one or more running containers",
		Long: "Hibernate one or more running containers: their processes are put on disk as they are, and their virtual machines\n" +
			"end. `cradle restore-state` or `cradle start` lets them go on, also after a restart of the daemon or the host.",
		Args: cli.RequiresMinArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return eachContainer(cmd, docker, d, args, "save-state")
		},
		DisableFlagsInUseLine: true,
	}
}

// newRestoreStateCommand is `restore-state`: the end of hibernation.
func newRestoreStateCommand(docker command.Cli, d *daemonDialer) *cobra.Command {
	var discard bool
	cmd := &cobra.Command{
		Use:   "restore-state [OPTIONS] CONTAINER [CONTAINER...]",
		Short: "Let one or more hibernated containers go on",
		Args:  cli.RequiresMinArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if discard {
				return eachContainer(cmd, docker, d, args, "discard-state")
			}
			return eachContainer(cmd, docker, d, args, "restore-state")
		},
		DisableFlagsInUseLine: true,
	}
	cmd.Flags().BoolVar(&discard, "discard", false, "Forget the processes instead: the container has exited then, with its disk as after a crash")
	return cmd
}

// eachContainer does one thing with each container.
func eachContainer(cmd *cobra.Command, docker command.Cli, d *daemonDialer, names []string, action string) error {
	return each(cmd, docker, d, names, http.MethodPost, func(name string) string { return "containers/" + name + "/" + action })
}

// each makes a request, to the path of each name, and prints the names of those it was done with, as docker's commands
// do.
func each(cmd *cobra.Command, docker command.Cli, d *daemonDialer, names []string, method string, path func(name string) string) error {
	var errs []error
	for _, name := range names {
		resp, err := d.call(cmd.Context(), method, path(name), nil)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		resp.Body.Close()
		fmt.Fprintln(docker.Out(), name)
	}
	return errors.Join(errs...)
}

// inspectEach prints, as a JSON list, what read finds of each name, which it gets as it stands in a path.
func inspectEach[T any](docker command.Cli, names []string, read func(name string, into any) error) error {
	list := []T{}
	var errs []error
	for _, name := range names {
		var one T
		if err := read(url.PathEscape(name), &one); err != nil {
			errs = append(errs, err)
			continue
		}
		list = append(list, one)
	}
	e := json.NewEncoder(docker.Out())
	e.SetIndent("", "    ")
	return errors.Join(append(errs, e.Encode(list))...)
}
