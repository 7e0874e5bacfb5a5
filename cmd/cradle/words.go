package main

import (
	"io"
	"regexp"
	"strings"

	"github.com/docker/cli/cli/command"
	"github.com/docker/cli/cli/streams"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// inOurWords makes an error text of docker's command library cradle's. What the daemon said is left alone: it
// may quote a user's own words.
func inOurWords(text string) string {
	const fromDaemon = "Error response from daemon: "
	head, rest, quoted := strings.Cut(text, fromDaemon)
	head = renameProgram(head)
	if !quoted {
		return head
	}
	// docker ends some messages with a hint of its own, after the daemon's words.
	hint := regexp.MustCompile(`\n\n(Run|See) 'docker [^\n]*$`)
	at := hint.FindStringIndex(rest)
	if at == nil {
		return head + fromDaemon + rest
	}
	return head + fromDaemon + rest[:at[0]] + renameProgram(rest[at[0]:])
}

// renameProgram replaces docker's name where a message speaks of the program, not of an image or a file.
func renameProgram(text string) string {
	if after, ok := strings.CutPrefix(text, "docker: "); ok {
		text = "cradle: " + after
	}
	return strings.NewReplacer(
		"'docker daemon' running on this host", "the cradle daemon running on this host",
		"'docker ", "'cradle ",
		"Docker daemon", "cradle daemon",
		"docker daemon", "cradle daemon",
		"docker API", "cradle API",
		"docker host", "cradle host",
	).Replace(text)
}

// renamedCli is docker's command library with what it says on stderr in cradle's words. That is for commands that only
// speak there: nothing of it is taken for a terminal.
type renamedCli struct {
	command.Cli
	err *streams.Out
}

func renamed(docker command.Cli) command.Cli {
	return &renamedCli{docker, streams.NewOut(renamedWriter{docker.Err()})}
}

// Err implements command.Cli.
func (r *renamedCli) Err() *streams.Out { return r.err }

// renamedWriter takes whole messages.
type renamedWriter struct{ to io.Writer }

func (w renamedWriter) Write(p []byte) (int, error) {
	_, err := io.WriteString(w.to, renameProgram(string(p)))
	return len(p), err
}

// renameTree puts cradle's name into the help of cmd and of all below it.
func renameTree(cmd *cobra.Command) {
	words := strings.NewReplacer(
		"docs.docker.com", "docs.docker.com", // the pages that describe these very flags
		"Docker Hub", "Docker Hub",
		"Docker daemon", "cradle daemon",
		"Docker", "cradle",
		"docker ", "cradle ",
	)
	cmd.Short, cmd.Long, cmd.Example = words.Replace(cmd.Short), words.Replace(cmd.Long), words.Replace(cmd.Example)
	cmd.Use = words.Replace(cmd.Use) // cp has two lines of it
	if aliases := cmd.Annotations["aliases"]; aliases != "" {
		cmd.Annotations["aliases"] = words.Replace(aliases)
	}
	cmd.Flags().VisitAll(func(f *pflag.Flag) { f.Usage = words.Replace(f.Usage) })
	for _, sub := range cmd.Commands() {
		renameTree(sub)
	}
}
