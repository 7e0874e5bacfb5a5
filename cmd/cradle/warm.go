package main

import (
	"time"

	"github.com/spf13/cobra"
)

// Labels by which the daemon finds out what --warm and its companions say.
const (
	warmLabel      = "dev.cradle.warm"
	warmReadyLabel = "dev.cradle.warm.ready"
	warmAfterLabel = "dev.cradle.warm.after"
)

// runWarm lets run and create start from a warm image: what they run, made ready beforehand.
func runWarm(cmd *cobra.Command) {
	var warm bool
	var ready string
	var after time.Duration
	flags := cmd.Flags()
	flags.BoolVar(&warm, "warm", false, "Start from a warm image: what was run in the same way before, made ready in the background")
	flags.StringVar(&ready, "warm-ready", "", "Command in the container that succeeds once it is ready (with --warm; default: its healthcheck)")
	flags.DurationVar(&after, "warm-after", 0, "Count as ready after having printed nothing for so long (with --warm, without a healthcheck; default 2s)")
	run := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		labels := map[string]string{}
		if warm {
			labels[warmLabel] = "true"
		}
		if ready != "" {
			labels[warmReadyLabel] = ready
		}
		if flags.Changed("warm-after") {
			labels[warmAfterLabel] = after.String()
		}
		for name, value := range labels {
			if err := flags.Set("label", name+"="+value); err != nil {
				return withRunStatus(cmd, err)
			}
		}
		return run(cmd, args)
	}
}
