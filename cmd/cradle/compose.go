package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/docker/cli/cli/command"
	"github.com/spf13/cobra"
)

// newComposeCommand is docker's compose, of whichever kind is installed, with cradle's daemon. It becomes that program.
func newComposeCommand(docker command.Cli, d *daemonDialer) *cobra.Command {
	return &cobra.Command{
		Use:                "compose [ARG...]",
		Short:              "Run compose with cradle's daemon",
		DisableFlagParsing: true, // they are compose's
		RunE: func(_ *cobra.Command, args []string) error {
			path, err := findCompose(filepath.Dir(docker.ConfigFile().Filename))
			if err != nil {
				return err
			}
			return syscall.Exec(path, append([]string{path}, args...), composeEnv(os.Environ(), d.host))
		},
		DisableFlagsInUseLine: true,
	}
}

// findCompose finds docker's plugin, in the directories where docker has plugins, or the program docker-compose: the plugin is that
// program, too, when nobody calls it as a plugin.
func findCompose(config string) (string, error) {
	dirs := []string{config, "/usr/local/lib/docker", "/usr/local/libexec/docker", "/usr/lib/docker", "/usr/libexec/docker"}
	for _, dir := range dirs {
		if path, err := exec.LookPath(filepath.Join(dir, "cli-plugins", "docker-compose")); err == nil {
			return path, nil
		}
	}
	path, err := exec.LookPath("docker-compose")
	if err != nil {
		return "", errors.New("docker's compose is not installed: its plugin, docker-compose, belongs into " +
			filepath.Join(config, "cli-plugins") + ", or install the package docker-compose")
	}
	return path, nil
}

// composeEnv is an environment in which clients of docker's find the daemon at host, and nothing that leads to another one.
func composeEnv(env []string, host string) []string {
	env = slices.DeleteFunc(slices.Clone(env), func(pair string) bool {
		name, _, _ := strings.Cut(pair, "=")
		return slices.Contains([]string{"DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_TLS", "DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH", "DOCKER_API_VERSION"}, name)
	})
	return append(env, "DOCKER_HOST="+host)
}
