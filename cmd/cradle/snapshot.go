package main

import (
	"fmt"
	"io"
	"net/http"
	"net/url"
	"text/tabwriter"
	"time"

	"github.com/docker/cli/cli"
	"github.com/docker/cli/cli/command"
	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"github.com/cradlevm/cradle/node"
)

// maxSnapshotAnswer bounds what the daemon says about snapshots, in bytes.
const maxSnapshotAnswer = 16 << 20

// newSnapshotCommand is `snapshot`: running containers that are kept, under a name, to go on from.
func newSnapshotCommand(docker command.Cli, d *daemonDialer) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "snapshot COMMAND",
		Short: "Keep running containers, to run others from where they were",
		Args:  cli.NoArgs,
		RunE:  command.ShowHelp(docker.Err()),
	}
	cmd.AddCommand(newSnapshotCreate(docker, d), newSnapshotRun(docker, d), newSnapshotList(docker, d), newSnapshotInspect(docker, d),
		newSnapshotRemove(docker, d), newSnapshotExport(docker, d), newSnapshotImport(docker, d))
	return cmd
}

// askSnapshots makes a request about snapshots and reads its answer into what.
func askSnapshots(cmd *cobra.Command, d *daemonDialer, method, path string, query url.Values, what any) error {
	resp, err := d.call(cmd.Context(), method, "snapshots"+path, query)
	if err != nil {
		return err
	}
	return readAnswer(resp, maxSnapshotAnswer, what)
}

func newSnapshotCreate(docker command.Cli, d *daemonDialer) *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use:   "create [OPTIONS] CONTAINER",
		Short: "Keep a running container as it is now; it goes on",
		Args:  cli.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var s node.NamedSnapshot
			if err := askSnapshots(cmd, d, http.MethodPost, "", url.Values{"container": {args[0]}, "name": {name}}, &s); err != nil {
				return err
			}
			fmt.Fprintln(docker.Out(), s.Name)
			return nil
		},
		DisableFlagsInUseLine: true,
	}
	cmd.Flags().StringVar(&name, "name", "", "Name of the snapshot")
	return cmd
}

func newSnapshotRun(docker command.Cli, d *daemonDialer) *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use:   "run [OPTIONS] SNAPSHOT",
		Short: "Make a container that goes on from a snapshot",
		Args:  cli.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var made struct{ ID string }
			if err := askSnapshots(cmd, d, http.MethodPost, "/"+url.PathEscape(args[0])+"/run", url.Values{"name": {name}}, &made); err != nil {
				return err
			}
			fmt.Fprintln(docker.Out(), made.ID)
			return nil
		},
		DisableFlagsInUseLine: true,
	}
	cmd.Flags().StringVar(&name, "name", "", "Name of the container")
	return cmd
}

func newSnapshotList(docker command.Cli, d *daemonDialer) *cobra.Command {
	var quiet bool
	cmd := &cobra.Command{
		Use:     "ls [OPTIONS]",
		Aliases: []string{"list"},
		Short:   "List snapshots",
		Args:    cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var list []node.NamedSnapshot
			if err := askSnapshots(cmd, d, http.MethodGet, "", nil, &list); err != nil {
				return err
			}
			return printSnapshots(docker.Out(), list, quiet)
		},
		DisableFlagsInUseLine: true,
	}
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "Only names")
	return cmd
}

func printSnapshots(out io.Writer, list []node.NamedSnapshot, quiet bool) error {
	w := tabwriter.NewWriter(out, 10, 1, 3, ' ', 0)
	if !quiet {
		fmt.Fprintln(w, "NAME\tCONTAINER\tIMAGE\tCREATED\tSIZE")
	}
	for _, s := range list {
		created := "damaged"
		if s.Damaged == "" {
			created = units.HumanDuration(time.Since(s.Created)) + " ago"
		}
		if quiet {
			fmt.Fprintln(w, s.Name)
			continue
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", s.Name, s.Container, s.Image, created, units.HumanSizeWithPrecision(float64(s.Bytes), 3))
	}
	return w.Flush()
}

func newSnapshotInspect(docker command.Cli, d *daemonDialer) *cobra.Command {
	return &cobra.Command{
		Use:   "inspect SNAPSHOT [SNAPSHOT...]",
		Short: "Tell of snapshots, in JSON",
		Args:  cli.RequiresMinArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return inspectEach[node.NamedSnapshot](docker, args, func(name string, into any) error {
				return askSnapshots(cmd, d, http.MethodGet, "/"+name, nil, into)
			})
		},
		DisableFlagsInUseLine: true,
	}
}

func newSnapshotRemove(docker command.Cli, d *daemonDialer) *cobra.Command {
	return &cobra.Command{
		Use:     "rm SNAPSHOT [SNAPSHOT...]",
		Aliases: []string{"remove"},
		Short:   "Remove snapshots",
		Args:    cli.RequiresMinArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return each(cmd, docker, d, args, http.MethodDelete, func(name string) string { return "snapshots/" + url.PathEscape(name) })
		},
		DisableFlagsInUseLine: true,
	}
}
