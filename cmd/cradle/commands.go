package main

import (
	"fmt"
	"slices"

	"github.com/docker/cli/cli/command"
	"github.com/spf13/cobra"
)

// dockerCommand is a command of docker's that cradle has too. Of a group, only the named subcommands.
type dockerCommand struct {
	name string
	subs []string
}

// dockerCommands is the list. What docker has and this list has not, cradle does not know.
func dockerCommands() []dockerCommand {
	return []dockerCommand{
		{name: "run"}, {name: "create"}, {name: "start"}, {name: "stop"}, {name: "restart"}, {name: "kill"},
		{name: "pause"}, {name: "unpause"}, {name: "rm"}, {name: "ps"}, {name: "logs"}, {name: "exec"},
		{name: "attach"}, {name: "wait"}, {name: "top"}, {name: "stats"}, {name: "rename"}, {name: "inspect"},
		{name: "port"}, {name: "cp"}, {name: "diff"}, {name: "export"}, {name: "commit"}, {name: "update"},
		{name: "images"}, {name: "pull"}, {name: "push"}, {name: "search"}, {name: "load"}, {name: "save"}, {name: "import"}, {name: "tag"},
		{name: "rmi"}, {name: "history"},
		{name: "info"}, {name: "version"}, {name: "events"}, {name: "login"}, {name: "logout"},
		{name: "container", subs: []string{"attach", "commit", "cp", "create", "diff", "exec", "export", "inspect",
			"kill", "logs", "ls", "pause", "port", "prune", "rename", "restart", "rm", "run", "start", "stats", "stop", "top",
			"unpause", "update", "wait"}},
		{name: "image", subs: []string{"history", "import", "inspect", "load", "ls", "prune", "pull", "push", "rm", "save", "tag"}},
		{name: "network", subs: []string{"connect", "create", "disconnect", "inspect", "ls", "prune", "rm"}},
		{name: "volume", subs: []string{"create", "inspect", "ls", "prune", "rm"}},
		{name: "system", subs: []string{"df", "events", "info"}},
	}
}

// onlyCommand is the one command of the list that args ask for; empty when they ask for another, or for one with
// subcommands. Making all sixty, with a thousand flags, takes more time than all else between main and the first word to
// the daemon.
func onlyCommand(args []string) string {
	if len(args) == 0 {
		return ""
	}
	for _, c := range dockerCommands() {
		if c.name == args[0] && len(c.subs) == 0 {
			return c.name
		}
	}
	return ""
}

// addDockerCommands moves the listed commands from docker's tree, made on scratch, to root: all, or only the one.
func addDockerCommands(root, scratch *cobra.Command, docker command.Cli, only string) error {
	for _, newCommand := range registered {
		cmd := newCommand(docker)
		if cmd.Name() == "login" { // it speaks of docker while it runs, not only in its help
			cmd = newCommand(renamed(docker))
		}
		scratch.AddCommand(cmd)
		if only != "" && cmd.Name() == only { // those in daily use are docker's first
			break
		}
	}
	for _, want := range dockerCommands() {
		if only != "" && want.name != only {
			continue
		}
		cmd := child(scratch, want.name)
		if cmd == nil {
			return fmt.Errorf("docker's command library has no %q", want.name)
		}
		scratch.RemoveCommand(cmd)
		for _, name := range want.subs {
			if child(cmd, name) == nil {
				return fmt.Errorf("docker's command library has no %q in %q", name, want.name)
			}
		}
		for _, sub := range slices.Clone(cmd.Commands()) {
			if !slices.Contains(want.subs, sub.Name()) {
				cmd.RemoveCommand(sub)
			}
		}
		renameTree(cmd)
		root.AddCommand(cmd)
	}
	return nil
}

// existing are those of the commands that have been made.
func existing(cmds ...*cobra.Command) []*cobra.Command {
	return slices.DeleteFunc(cmds, func(c *cobra.Command) bool { return c == nil })
}

// child is the subcommand of that name, or nil. cmd may be nil.
func child(cmd *cobra.Command, name string) *cobra.Command {
	if cmd == nil {
		return nil
	}
	for _, sub := range cmd.Commands() {
		if sub.Name() == name {
			return sub
		}
	}
	return nil
}
