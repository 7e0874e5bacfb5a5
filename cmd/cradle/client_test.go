package main

import (
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/docker/cli/cli/command"
	"github.com/spf13/cobra"
)

func TestRunExitCodes(t *testing.T) {
	for name, c := range map[string]struct {
		node   *fakeNode
		args   []string
		code   int
		stderr string // its beginning
	}{
		"success": {code: 0},
		"failure": {node: &fakeNode{ExitCode: 7}, code: 7},
		"killed":  {node: &fakeNode{ExitCode: 137}, code: 137},
		"not found": {
			node: &fakeNode{StartError: `exec: "nope": executable file not found in $PATH`}, code: 127,
			stderr: `cradle: Error response from daemon: exec: "nope": executable file not found in $PATH` + "\n\nRun 'cradle run --help' for more information\n",
		},
		"not runnable": {
			node: &fakeNode{StartError: `exec: "/etc": permission denied`}, code: 126,
			stderr: "cradle: Error response from daemon: ",
		},
		"refused": {
			node: &fakeNode{CreateError: "docker daemon: --device is not supported"}, code: 125,
			stderr: "cradle: Error response from daemon: docker daemon: --device is not supported\n\nRun 'cradle run --help'",
		},
		"no image": {
			node: &fakeNode{NoImage: true}, code: 125,
			stderr: "Unable to find image 'busybox:latest' locally\ncradle: Error response from daemon: docker daemon says: pull access denied for docker\n\nRun 'cradle run --help'",
		},
		"unknown flag":  {args: []string{"--nonsense"}, code: 125, stderr: "unknown flag: --nonsense\n\nUsage:  cradle run [OPTIONS]"},
		"invalid value": {args: []string{"--memory", "much"}, code: 125, stderr: `invalid argument "much" for "-m, --memory"`},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHouse(t)
			node := c.node
			if node == nil {
				node = new(fakeNode)
			}
			socket := serveFake(t, node)
			args := slices.Concat([]string{"run"}, c.args, []string{"busybox", "true"})
			r := h.cradle(t, []string{envHost + "=unix://" + socket}, args...)
			if r.code != c.code || !strings.HasPrefix(r.stderr, c.stderr) || c.stderr == "" && r.stderr != "" {
				t.Errorf("code %d, stderr %q; want %d, %q", r.code, r.stderr, c.code, c.stderr)
			}
			if c.code < 125 && r.stdout != "hello\n" {
				t.Errorf("stdout %q", r.stdout)
			}
		})
	}
}

func TestVersionNegotiation(t *testing.T) {
	h := newHouse(t)
	node := &fakeNode{APIVersion: "1.41"}
	env := []string{envHost + "=unix://" + serveFake(t, node)}
	if r := h.cradle(t, env, "ps", "-q"); r.code != 0 {
		t.Fatalf("%+v", r)
	}
	if asked := node.requests(); !slices.Contains(asked, "GET /v1.41/containers/json") {
		t.Errorf("asked %q", asked)
	}
	r := h.cradle(t, env, "run", "--health-start-interval", "1s", "busybox")
	if want := `"--health-start-interval" requires API version 1.44, but the cradle daemon API version is 1.41` + "\n"; r.stderr != want || r.code == 0 {
		t.Errorf("%+v", r)
	}
}

func TestErrorWords(t *testing.T) {
	for in, want := range map[string]string{
		"": "",
		"docker: bad\n\nRun 'docker run --help' for more information":                                            "cradle: bad\n\nRun 'cradle run --help' for more information",
		"Error response from daemon: No such image: docker: x":                                                   "Error response from daemon: No such image: docker: x",
		"docker: Error response from daemon: 'docker x' Docker daemon\n\nRun 'docker run --help' for more":       "cradle: Error response from daemon: 'docker x' Docker daemon\n\nRun 'cradle run --help' for more",
		"Cannot connect to the Docker daemon at unix:///x. Is the docker daemon running?":                        "Cannot connect to the cradle daemon at unix:///x. Is the cradle daemon running?",
		"failed to connect to the docker API at unix:///x; check if the path is correct":                         "failed to connect to the cradle API at unix:///x; check if the path is correct",
		"unable to parse docker host `x`":                                                                        "unable to parse cradle host `x`",
		"invalid reference format: repository name (library/Docker) must be lowercase":                           "invalid reference format: repository name (library/Docker) must be lowercase",
		"open /var/lib/docker/x: no such file or directory":                                                      "open /var/lib/docker/x: no such file or directory",
		"cannot connect to the Docker daemon. Is 'docker daemon' running on this host?: dial unix: no such file": "cannot connect to the cradle daemon. Is the cradle daemon running on this host?: dial unix: no such file",
	} {
		if got := inOurWords(in); got != want {
			t.Errorf("inOurWords(%q) = %q, want %q", in, got, want)
		}
	}
}

// The whole help speaks of cradle: of docker only where its hub, its pages or its files are meant.
func TestHelpSpeaksOfCradle(t *testing.T) {
	docker, err := command.NewDockerCli(command.WithCombinedStreams(new(strings.Builder)))
	if err != nil {
		t.Fatal(err)
	}
	root, _, err := newRoot(docker, []string{"-H", "unix:///nobody"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	walk(root, func(cmd *cobra.Command) {
		help := cmd.UsageString() + cmd.Long + cmd.Short
		for _, fine := range []string{"docs.docker.com", "Docker Hub", "/.docker"} {
			help = strings.ReplaceAll(help, fine, "")
		}
		for line := range strings.Lines(help) {
			if strings.Contains(strings.ToLower(line), "docker") {
				t.Errorf("%s --help: %s", cmd.CommandPath(), strings.TrimSpace(line))
			}
		}
	})
}

// A tree with the one command that was asked for, and the whole tree, have the same command.
func TestOneCommandIsAsInTheWholeTree(t *testing.T) {
	tree := func(args ...string) *cobra.Command {
		docker, err := command.NewDockerCli(command.WithCombinedStreams(new(strings.Builder)))
		if err != nil {
			t.Fatal(err)
		}
		root, _, err := newRoot(docker, append([]string{"-H", "unix:///nobody"}, args...), nil)
		if err != nil {
			t.Fatal(err)
		}
		return root
	}
	whole := tree()
	for _, c := range dockerCommands() {
		root := tree(c.name, "x")
		if len(c.subs) > 0 {
			if len(root.Commands()) != len(whole.Commands()) {
				t.Errorf("%s: a group has %d commands beside it, want all", c.name, len(root.Commands()))
			}
			continue
		}
		if len(root.Commands()) != 1 {
			t.Errorf("%s: the tree has %d commands", c.name, len(root.Commands()))
		}
		one, all := child(root, c.name), child(whole, c.name)
		if one == nil || one.UsageString() != all.UsageString() || one.Long != all.Long || one.Short != all.Short {
			t.Errorf("%s: another command than in the whole tree", c.name)
		}
	}
}

func walk(cmd *cobra.Command, f func(*cobra.Command)) {
	f(cmd)
	for _, sub := range cmd.Commands() {
		walk(sub, f)
	}
}

func TestSmallThings(t *testing.T) {
	h := newHouse(t)
	socket := serveFake(t, &fakeNode{})
	for _, c := range []struct {
		args           string
		code           int
		stdout, stderr string // contained
	}{
		{"--version", 0, "cradle version ", ""},
		{"-v", 0, "cradle version ", ""},
		{"", 0, "", "Usage:  cradle [OPTIONS] COMMAND"},
		{"--help", 0, "Usage:  cradle [OPTIONS] COMMAND", ""},
		{"help run", 0, "Usage:  cradle run [OPTIONS] IMAGE", ""},
		{"swarm init", 1, "", "cradle: unknown command: cradle swarm\n\nRun 'cradle --help'"},
		{"--nonsense ps", 125, "", "unknown flag: --nonsense"},
		{"ps --nonsense", 125, "", "Run 'cradle ps --help' for more information"},
		{"system dance", 1, "", "cradle: unknown command: cradle system dance"},
		{"image build", 1, "", "cradle: unknown command: cradle image build"},
		{"version --format {{.Client.Platform.Name}}/{{.Server.Version}}", 0, "cradle/fake\n", ""},
		{"info --format {{.ClientInfo.Plugins}}", 0, "[]\n", ""},
		{"__complete sto", 0, "stop\t", ""},
		{"completion bash", 0, "__start_cradle", ""},
		{"system prune --force", 0, "Deleted Containers:\n4242", ""},
		{"system prune --all --force", 0, "Deleted Images:\nuntagged: redis:latest\ndeleted: sha256:1\n\nTotal reclaimed space: 1.5kB\n", ""},
		{"system prune", 1, "Are you sure you want to continue? [y/N] ", "system prune has been cancelled"},
		{"-H ftp://x ps", 1, "", `invalid daemon address "ftp://x"`},
		{"daemon --log-level loud", 1, "", `invalid --log-level "loud"`},
		{"daemon --host tcp://0.0.0.0:1", 1, "", `invalid --host "tcp://0.0.0.0:1"`},
		{"daemon extra", 1, "", "cradle: 'cradle daemon' accepts no arguments"},
	} {
		r := h.cradle(t, []string{envHost + "=" + socket}, strings.Fields(c.args)...)
		if r.code != c.code || !strings.Contains(r.stdout, c.stdout) || !strings.Contains(r.stderr, c.stderr) {
			t.Errorf("cradle %s: code %d, want %d\nstdout %q\nstderr %q", c.args, r.code, c.code, r.stdout, r.stderr)
		}
	}
}

// What docker's directories of plugins hold is neither run nor listed, but for compose when it is asked for.
func TestNoPlugins(t *testing.T) {
	if len(dockerPluginDirs) == 0 {
		t.Error("docker's command library has moved its list of plugin directories")
	}
	h := newHouse(t)
	plugins := filepath.Join(h.dir, "cli-plugins")
	if err := os.Mkdir(plugins, 0o755); err != nil {
		t.Fatal(err)
	}
	trace := filepath.Join(h.dir, "ran")
	script := fmt.Sprintf("#!/bin/sh\ntouch %s\necho '{}'\n", trace)
	for name, text := range map[string]string{"docker-other": script, "docker-compose": "#!/bin/sh\necho $DOCKER_HOST $*\nexit 7\n"} {
		if err := os.WriteFile(filepath.Join(plugins, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	socket := serveFake(t, &fakeNode{})
	for _, args := range [][]string{{"info"}, {"system", "info"}, {"other", "up"}, {"--help"}, {"__complete", ""}} {
		if r := h.cradle(t, []string{envHost + "=" + socket}, args...); strings.Contains(r.stdout, "other  ") || strings.Contains(r.stdout, "other\t") {
			t.Errorf("%v: %q", args, r.stdout)
		}
	}
	if _, err := os.Stat(trace); err == nil {
		t.Error("a plugin of docker's was run")
	}
	r := h.cradle(t, []string{envHost + "=" + socket, "DOCKER_HOST=tcp://other"}, "compose", "-f", "x", "up", "--help")
	if want := "unix://" + strings.TrimPrefix(socket, "unix://") + " -f x up --help\n"; r.code != 7 || r.stdout != want {
		t.Errorf("compose: exit code %d, %q, want %q; %s", r.code, r.stdout, want, r.stderr)
	}
}

// What login says while it runs speaks of cradle.
func TestLoginSpeaksOfCradle(t *testing.T) {
	h := newHouse(t)
	config := `{"auths":{"127.0.0.1:1":{"auth":"` + base64.StdEncoding.EncodeToString([]byte("somebody:secret")) + `"}}}`
	if err := os.WriteFile(filepath.Join(h.dir, "config.json"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	r := h.cradle(t, []string{envHost + "=unix://" + serveFake(t, new(fakeNode))}, "login", "127.0.0.1:1")
	if !strings.Contains(r.stderr, "run 'cradle logout' followed by 'cradle login'") || strings.Contains(r.stderr, "'docker ") {
		t.Errorf("%+v", r)
	}
}
