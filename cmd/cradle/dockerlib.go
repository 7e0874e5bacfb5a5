package main

import (
	_ "unsafe" // for go:linkname

	_ "github.com/docker/cli/cli-plugins/manager"
	"github.com/docker/cli/cli/command"
	_ "github.com/docker/cli/cli/command/container"
	_ "github.com/docker/cli/cli/command/image"
	_ "github.com/docker/cli/cli/command/network"
	_ "github.com/docker/cli/cli/command/registry"
	_ "github.com/docker/cli/cli/command/system"
	_ "github.com/docker/cli/cli/command/volume"
	"github.com/spf13/cobra"
)

// Two variables of docker's command library that it does not export. Should it rename one, the tests that look
// for commands and plugins fail.

// registered are the constructors of the commands whose packages are imported above. The library's own way to
// them, its package commands, imports every package there is: swarm and compose cost a third of the start time.
//
//go:linkname registered github.com/docker/cli/internal/commands.commands
var registered []func(command.Cli) *cobra.Command

// dockerPluginDirs are the system's directories of CLI plugins. docker's info command runs every plugin it finds
// there to print its version, and has no switch for that; cradle runs no plugins.
//
//go:linkname dockerPluginDirs github.com/docker/cli/cli-plugins/manager.defaultSystemPluginDirs
var dockerPluginDirs []string
