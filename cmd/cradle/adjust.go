package main

import (
	"errors"
	"fmt"

	"github.com/docker/cli/cli"
	"github.com/docker/cli/cli/command"
	"github.com/docker/cli/cli/config"
	"github.com/moby/moby/client/pkg/versions"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// adjust changes the few of docker's commands that cradle cannot take as they are.
func adjust(root *cobra.Command) {
	hideForeignFlags(root)
	for _, info := range existing(child(root, "info"), child(child(root, "system"), "info")) {
		withoutPlugins(info)
	}
	group := child(root, "container")
	for _, cmd := range existing(child(root, "run"), child(root, "create"), child(group, "run"), child(group, "create")) {
		runSummoned(cmd)
		runWarm(cmd)
		runPolicy(cmd)
	}
}

// hideForeignFlags takes out of the help what only other operating systems and experiments of docker's have.
func hideForeignFlags(cmd *cobra.Command) {
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		_, experimental := f.Annotations["experimental"]
		_, experimentalCLI := f.Annotations["experimentalCLI"]
		if experimental || experimentalCLI || !forLinux(f) {
			f.Hidden = true
		}
	})
	for _, sub := range cmd.Commands() {
		hideForeignFlags(sub)
	}
}

func forLinux(f *pflag.Flag) bool {
	os, ok := f.Annotations["ostype"]
	return !ok || len(os) == 0 || os[0] == "linux"
}

// withoutPlugins keeps an info command from looking for docker's plugins. The configuration has been read by
// the time the command runs, so that moving its directory only hides the plugins beside it.
func withoutPlugins(info *cobra.Command) {
	run := info.RunE
	info.RunE = func(cmd *cobra.Command, args []string) error {
		dockerPluginDirs = nil
		config.SetDir("/dev/null")
		return run(cmd, args)
	}
}

// supported refuses, by name, flags that the daemon at the other end is too old for or that are not for Linux.
func supported(cmd *cobra.Command, docker *command.DockerCli) error {
	var errs []error
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if !f.Changed {
			return
		}
		if !forLinux(f) {
			errs = append(errs, fmt.Errorf(`"--%s" is only supported on a daemon running on %s, but the cradle daemon is running on linux`, f.Name, f.Annotations["ostype"][0]))
		}
		if _, ok := f.Annotations["experimental"]; ok && !docker.ServerInfo().HasExperimental {
			errs = append(errs, fmt.Errorf(`"--%s" is only supported on a cradle daemon with experimental features enabled`, f.Name))
		}
		if since := f.Annotations["version"]; len(since) > 0 && versions.LessThan(docker.CurrentVersion(), since[0]) {
			errs = append(errs, fmt.Errorf(`"--%s" requires API version %s, but the cradle daemon API version is %s`, f.Name, since[0], docker.CurrentVersion()))
		}
	})
	return errors.Join(errs...)
}

// withRunStatus gives an error that comes before docker's own code what docker's run makes of such errors: the
// exit code 125 and the hint.
func withRunStatus(cmd *cobra.Command, err error) error {
	if cmd.Name() != "run" {
		return err
	}
	return cli.StatusError{
		Cause:      err,
		Status:     fmt.Sprintf("cradle: %v\n\nRun '%s --help' for more information", err, cmd.CommandPath()),
		StatusCode: 125,
	}
}
