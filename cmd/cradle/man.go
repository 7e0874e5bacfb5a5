package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/docker/cli/cli"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// newManCommand writes the manual, one page for each command, into a directory: what `make man` runs.
func newManCommand() *cobra.Command {
	return &cobra.Command{
		Use:                   "man DIR",
		Short:                 "Write manual pages",
		Hidden:                true,
		Args:                  cli.ExactArgs(1),
		Annotations:           map[string]string{annotationNoDaemon: "true"},
		RunE:                  func(cmd *cobra.Command, args []string) error { return writeManual(cmd.Root(), args[0]) },
		DisableFlagsInUseLine: true,
	}
}

// writeManual writes cmd's page and those of all below it.
func writeManual(cmd *cobra.Command, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	f, err := os.Create(filepath.Join(dir, pageName(cmd)+".1"))
	if err != nil {
		return err
	}
	writePage(f, cmd)
	if err := f.Close(); err != nil {
		return err
	}
	for _, sub := range documented(cmd) {
		if err := writeManual(sub, dir); err != nil {
			return err
		}
	}
	return nil
}

func documented(cmd *cobra.Command) []*cobra.Command {
	var list []*cobra.Command
	for _, sub := range cmd.Commands() {
		if sub.IsAvailableCommand() && !sub.IsAdditionalHelpTopicCommand() {
			list = append(list, sub)
		}
	}
	return list
}

func pageName(cmd *cobra.Command) string { return strings.ReplaceAll(cmd.CommandPath(), " ", "-") }

// writePage writes one page in roff. What cannot be written shows when the file is closed.
func writePage(w io.Writer, cmd *cobra.Command) {
	fmt.Fprintf(w, ".TH %q 1 \"\" %q %q\n", strings.ToUpper(pageName(cmd)), "cradle", "cradle manual")
	fmt.Fprintf(w, ".SH NAME\n%s \\- %s\n", roff(pageName(cmd)), roff(cmd.Short))
	fmt.Fprintf(w, ".SH SYNOPSIS\n.B %s\n", roff(cmd.UseLine()))
	text := cmd.Long
	if text == "" {
		text = cmd.Short + "."
	}
	fmt.Fprintf(w, ".SH DESCRIPTION\n%s\n", paragraphs(text))
	subs := documented(cmd)
	if len(subs) > 0 {
		fmt.Fprintln(w, ".SH COMMANDS")
		for _, sub := range subs {
			fmt.Fprintf(w, ".TP\n.B %s\n%s\n", roff(sub.Name()), roff(sub.Short))
		}
	}
	if cmd.HasAvailableLocalFlags() {
		fmt.Fprintln(w, ".SH OPTIONS")
		cmd.LocalFlags().VisitAll(func(f *pflag.Flag) { writeFlag(w, f) })
	}
	if cmd.Example != "" {
		fmt.Fprintf(w, ".SH EXAMPLES\n.nf\n%s\n.fi\n", roff(cmd.Example))
	}
	var see []string
	if cmd.HasParent() {
		see = append(see, fmt.Sprintf("\\fB%s\\fP(1)", roff(pageName(cmd.Parent()))))
	}
	for _, sub := range subs {
		see = append(see, fmt.Sprintf("\\fB%s\\fP(1)", roff(pageName(sub))))
	}
	if len(see) > 0 {
		fmt.Fprintf(w, ".SH SEE ALSO\n%s\n", strings.Join(see, ", "))
	}
}

func writeFlag(w io.Writer, f *pflag.Flag) {
	if f.Hidden || f.Deprecated != "" {
		return
	}
	kind, usage := pflag.UnquoteUsage(f)
	names := "--" + f.Name
	if f.Shorthand != "" {
		names = "-" + f.Shorthand + ", " + names
	}
	fmt.Fprintf(w, ".TP\n\\fB%s\\fP", roff(names))
	if kind != "" {
		fmt.Fprintf(w, " \\fI%s\\fP", roff(kind))
	}
	fmt.Fprintf(w, "\n%s\n", roff(usage))
}

// roff escapes text: backslashes, dashes that are to be typed, and what would be a request at a line's beginning.
func roff(text string) string {
	text = strings.NewReplacer(`\`, `\e`, "-", `\-`).Replace(text)
	lines := strings.Split(text, "\n")
	for i, line := range lines {
		if strings.HasPrefix(line, ".") || strings.HasPrefix(line, "'") {
			lines[i] = `\&` + line
		}
	}
	return strings.Join(lines, "\n")
}

// paragraphs is roff with an empty line made a paragraph's end.
func paragraphs(text string) string {
	return strings.ReplaceAll(roff(strings.TrimSpace(text)), "\n\n", "\n.PP\n")
}
