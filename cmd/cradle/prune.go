package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/docker/cli/cli"
	"github.com/docker/cli/cli/command"
	"github.com/docker/cli/opts"
	"github.com/docker/go-units"
	"github.com/moby/moby/client"
	"github.com/spf13/cobra"
)

type pruneOptions struct {
	all, force bool
	filter     opts.FilterOpt
}

// newPruneCommand is `system prune`, over what cradle has to prune.
func newPruneCommand(docker command.Cli) *cobra.Command {
	o := pruneOptions{filter: opts.NewFilterOpt()}
	cmd := &cobra.Command{
		Use:                   "prune [OPTIONS]",
		Short:                 "Remove unused data",
		Args:                  cli.NoArgs,
		RunE:                  func(cmd *cobra.Command, _ []string) error { return prune(cmd.Context(), docker, o) },
		DisableFlagsInUseLine: true,
	}
	cmd.Flags().BoolVarP(&o.force, "force", "f", false, "Do not prompt for confirmation")
	cmd.Flags().BoolVarP(&o.all, "all", "a", false, "Remove all unused images not just dangling ones")
	cmd.Flags().Var(&o.filter, "filter", `Provide filter values (e.g. "label=<key>=<value>")`)
	return cmd
}

func prune(ctx context.Context, docker command.Cli, o pruneOptions) error {
	if !o.force {
		images := "all dangling images"
		if o.all {
			images = "all images without at least one container associated to them"
		}
		question := "WARNING! This will remove:\n  - all stopped containers\n  - " + images + "\n\nAre you sure you want to continue?"
		if err := confirm(ctx, docker, question, "system prune has been cancelled"); err != nil {
			return err
		}
	}
	out := docker.Out()
	containers, err := docker.Client().ContainerPrune(ctx, client.ContainerPruneOptions{Filters: o.filter.Value()})
	if err != nil {
		return err
	}
	if ids := containers.Report.ContainersDeleted; len(ids) > 0 {
		fmt.Fprintf(out, "Deleted Containers:\n%s\n\n", strings.Join(ids, "\n"))
	}
	filters := o.filter.Value()
	if filters == nil {
		filters = make(client.Filters)
	}
	filters.Add("dangling", fmt.Sprint(!o.all))
	images, err := docker.Client().ImagePrune(ctx, client.ImagePruneOptions{Filters: filters})
	if err != nil {
		return err
	}
	if len(images.Report.ImagesDeleted) > 0 {
		fmt.Fprintln(out, "Deleted Images:")
		for _, i := range images.Report.ImagesDeleted {
			if i.Untagged != "" {
				fmt.Fprintln(out, "untagged:", i.Untagged)
			} else {
				fmt.Fprintln(out, "deleted:", i.Deleted)
			}
		}
		fmt.Fprintln(out)
	}
	reclaimed := containers.Report.SpaceReclaimed + images.Report.SpaceReclaimed
	fmt.Fprintln(out, "Total reclaimed space:", units.HumanSize(float64(reclaimed)))
	return nil
}

// confirm asks, and returns an error that says refused unless the answer is yes.
func confirm(ctx context.Context, streams command.Streams, question, refused string) error {
	fmt.Fprint(streams.Out(), question, " [y/N] ")
	type answer struct {
		text string
		err  error
	}
	answers := make(chan answer, 1)
	go func() {
		text, err := readLine(streams.In())
		answers <- answer{text, err}
	}()
	select {
	case <-ctx.Done():
		fmt.Fprintln(streams.Out())
		return context.Cause(ctx)
	case a := <-answers:
		if a.err != nil {
			return a.err
		}
		if strings.EqualFold(strings.TrimSpace(a.text), "y") {
			return nil
		}
		return errors.New(refused)
	}
}

// readLine reads no further than the line's end; what follows belongs to whoever asks next.
func readLine(r io.Reader) (string, error) {
	var line strings.Builder
	b := make([]byte, 1)
	for line.Len() < 1024 {
		n, err := r.Read(b)
		if n == 1 && b[0] == '\n' || errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return "", err
		}
		line.Write(b[:n])
	}
	return line.String(), nil
}
