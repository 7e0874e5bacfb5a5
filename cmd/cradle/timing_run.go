package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/docker/cli/cli/command"
	"github.com/spf13/cobra"
)

// timingLimit bounds asking the daemon for what it knows of the start.
const timingLimit = 5 * time.Second

// Values of --timing.
const (
	timingTable = "table"
	timingSVG   = "svg"
)

// timeRun gives run its --timing.
func timeRun(root *cobra.Command, docker command.Cli, d *daemonDialer) {
	for _, cmd := range existing(child(root, "run"), child(child(root, "container"), "run")) {
		var form string
		cmd.Flags().StringVar(&form, "timing", "", `Say where the time went: on standard error, or as a drawing ("svg:FILE", or "svg" with FILE before the other options)`)
		cmd.Flags().Lookup("timing").NoOptDefVal = timingTable
		run := cmd.RunE
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			if form == "" {
				return run(cmd, args)
			}
			name, args, err := timingFile(cmd, form, args)
			if err != nil {
				return withRunStatus(cmd, err)
			}
			var drawing *os.File
			if name != "" { // what cannot be written is said before anything runs
				if drawing, err = os.Create(name); err != nil {
					return withRunStatus(cmd, err)
				}
			}
			d.watch()
			err = run(cmd, args)
			return errors.Join(err, d.tellTiming(cmd, docker, drawing))
		}
	}
}

// timingFile reads the flag's value: the file to draw into, empty for a table. After --timing=svg the file is the first
// argument, and the options go on behind it. It must look like a file, or an image whose file was forgotten would be overwritten.
func timingFile(cmd *cobra.Command, form string, args []string) (string, []string, error) {
	if form == timingTable {
		if args[0] == timingSVG {
			return "", nil, errors.New("write --timing=svg FILE or --timing=svg:FILE, with the equals sign (for an image of that name: svg:latest)")
		}
		return "", args, nil
	}
	if file, ok := strings.CutPrefix(form, timingSVG+":"); ok && file != "" {
		return file, args, nil
	}
	if form != timingSVG {
		return "", nil, fmt.Errorf(`invalid --timing %q: nothing, "svg:FILE" or "svg"`, form)
	}
	file := args[0]
	if !strings.HasSuffix(file, "."+timingSVG) && !isPath(file) {
		return "", nil, fmt.Errorf("--timing=svg takes a file, and %q does not look like one: end it in .svg, or begin it with ./ or /", file)
	}
	if err := cmd.Flags().Parse(args[1:]); err != nil {
		return "", nil, err
	}
	args = cmd.Flags().Args()
	if len(args) == 0 {
		return "", nil, errors.New("--timing=svg takes a file, and an image comes after it")
	}
	return file, args, nil
}

// tellTiming shows what was noted: as a table, or in the file drawing, which it closes. What the command did is done: only
// a file that cannot be written is an error.
func (d *daemonDialer) tellTiming(cmd *cobra.Command, docker command.Cli, drawing *os.File) error {
	t := d.unwatch()
	t.mark("end")
	ctx, cancel := context.WithTimeout(context.WithoutCancel(cmd.Context()), timingLimit)
	defer cancel()
	daemon, err := t.startOf(ctx, d)
	if err != nil {
		fmt.Fprintln(docker.Err(), "What the daemon did is not known:", err)
	}
	spans, way := t.spans(daemon), ""
	if daemon != nil {
		way = daemon.Way
	}
	if drawing == nil {
		writeTimings(docker.Err(), spans, way)
		return nil
	}
	return errors.Join(writeTimingsSVG(drawing, spans, way), drawing.Close())
}
