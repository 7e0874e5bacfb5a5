package main

import (
	"fmt"
	"os"

	"github.com/docker/cli/cli"
	"github.com/docker/cli/cli/command"
	"github.com/docker/cli/cli/config"
	"github.com/docker/cli/cli/flags"
	"github.com/docker/cli/cli/version"
	"github.com/moby/moby/client"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// globals are the flags before the command's name.
type globals struct {
	host, logLevel, configDir string
	debug                     bool
}

func (g *globals) install(f *pflag.FlagSet) {
	f.StringVarP(&g.host, "host", "H", "", "Daemon socket to connect to (overrides CRADLE_HOST)")
	f.StringVarP(&g.logLevel, "log-level", "l", "info", `Set the logging level ("debug", "info", "warn", "error", "fatal")`)
	f.StringVar(&g.configDir, "config", config.Dir(), "Location of client config files (credentials, formats)")
	f.BoolVarP(&g.debug, "debug", "D", false, "Enable debug mode")
	f.BoolP("version", "v", false, "Print version information and quit")
}

// newRoot makes the command tree, with the global flags in args already applied, and returns the args that are
// left for it. When they name a command of docker's without subcommands, the tree has no other. Docker's commands ask
// for the client while they are set up for completion, so it exists by then.
func newRoot(docker *command.DockerCli, args []string, daemon daemonFunc) (*cobra.Command, []string, error) {
	root := &cobra.Command{
		Use:                   "cradle [OPTIONS] COMMAND [ARG...]",
		Short:                 "Runs any OCI image in a virtual machine of its own",
		SilenceUsage:          true,
		SilenceErrors:         true,
		TraverseChildren:      true,
		DisableFlagsInUseLine: true,
		Version:               version.Version + ", build " + version.GitCommit,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return command.ShowHelp(docker.Err())(cmd, args)
			}
			return fmt.Errorf("cradle: unknown command: cradle %s\n\nRun 'cradle --help' for more information", args[0])
		},
	}
	root.SetIn(docker.In())
	root.SetOut(docker.Out())
	root.SetErr(docker.Err())
	root.CompletionOptions.SetDefaultShellCompDirective(cobra.ShellCompDirectiveNoFileComp)

	scratch := &cobra.Command{Use: "docker"}
	_, help := cli.SetupRootCommand(scratch)
	root.SetUsageTemplate(scratch.UsageTemplate())
	root.SetHelpTemplate(scratch.HelpTemplate())
	root.SetVersionTemplate("cradle version {{.Version}}\n")
	root.SetFlagErrorFunc(cli.FlagErrorFunc)
	root.SetHelpCommand(help)
	root.PersistentFlags().BoolP("help", "h", false, "Print usage")
	_ = root.PersistentFlags().MarkShorthandDeprecated("help", "use --help")
	root.PersistentFlags().Lookup("help").Hidden = true

	var g globals
	g.install(root.Flags())
	rest, err := parseGlobals(root, args)
	if err != nil {
		return nil, nil, err
	}
	d, err := initialize(docker, g)
	if err != nil {
		return nil, nil, err
	}
	only := onlyCommand(rest)
	if err := addDockerCommands(root, scratch, docker, only); err != nil {
		return nil, nil, err
	}
	adjust(root)
	timeRun(root, docker, d)
	costStats(root, docker, d)
	if only == "" {
		addOwnCommands(root, docker, d, daemon)
	}
	root.PersistentPreRunE = func(cmd *cobra.Command, _ []string) error {
		if needsDaemon(cmd) {
			if err := d.ensure(cmd.Context()); err != nil {
				return withRunStatus(cmd, err)
			}
		}
		return supported(cmd, docker)
	}
	return root, rest, nil
}

// parseGlobals applies the flags before the first command name and returns what follows.
func parseGlobals(root *cobra.Command, args []string) ([]string, error) {
	f := pflag.NewFlagSet(root.Name(), pflag.ContinueOnError)
	f.SetInterspersed(false)
	f.AddFlagSet(root.Flags())
	f.AddFlagSet(root.PersistentFlags())
	if err := f.Parse(args); err != nil {
		return nil, cli.FlagErrorFunc(root, err)
	}
	return f.Args(), nil
}

// initialize gives docker its options and its client. Nothing of docker's own choice of a daemon (DOCKER_HOST,
// DOCKER_CONTEXT, contexts, TLS settings, API version, extra headers) plays a part, and no plugin or hook does.
func initialize(docker *command.DockerCli, g globals) (*daemonDialer, error) {
	d, err := newDaemonDialer(g.host, os.Getenv)
	if err != nil {
		return nil, err
	}
	api, err := client.New(client.WithHost(d.host), client.WithDialContext(d.dial), client.WithUserAgent(userAgent()))
	if err != nil {
		return nil, err
	}
	o := &flags.ClientOptions{Debug: g.debug, LogLevel: g.logLevel, ConfigDir: g.configDir, Hosts: []string{d.host}}
	err = docker.Initialize(o,
		command.WithAPIClient(api),
		command.WithContextResolver(func(*command.DockerCli) (string, error) { return command.DefaultContextName, nil }),
	)
	if err != nil {
		return nil, err
	}
	docker.ConfigFile().CLIPluginsExtraDirs = nil
	return d, nil
}

// addOwnCommands adds what docker has no command for.
func addOwnCommands(root *cobra.Command, docker *command.DockerCli, d *daemonDialer, daemon daemonFunc) {
	root.AddCommand(newDaemonCommand(daemon), newSummonCommand(docker, d), newCloneCommand(docker, d),
		newSaveStateCommand(docker, d), newRestoreStateCommand(docker, d), newSnapshotCommand(docker, d), newPoolCommand(docker, d),
		newCostCommand(docker, d), newComposeCommand(docker, d), newManCommand())
	child(root, "network").AddCommand(newPolicyCommand(docker, d))
	child(root, "system").AddCommand(newPruneCommand(docker), newResetCommand(docker, d))
}
