package main

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/docker/cli/cli"
	"github.com/docker/cli/cli/command"
	"github.com/spf13/cobra"
)

// summonedFile marks a directory that `cradle summon` made.
const summonedFile = "cradle.json"

// newSummonCommand is `summon`: everything a VM needs, as a directory.
func newSummonCommand(docker command.Cli, d *daemonDialer) *cobra.Command {
	var platform string
	cmd := &cobra.Command{
		Use:   "summon [OPTIONS] DIR IMAGE",
		Short: "Make a directory that holds all a virtual machine needs",
		Long: "Make a directory that holds all a virtual machine needs to run IMAGE: kernel, initrd, layers and\n" +
			summonedFile + ". Edit it, run it with `cradle run DIR`, copy it to another machine.",
		Args: cli.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			query := url.Values{"image": {args[1]}}
			if platform != "" {
				query.Set("platform", platform)
			}
			return summon(cmd, docker, d, args[0], query)
		},
		DisableFlagsInUseLine: true,
	}
	cmd.Flags().StringVar(&platform, "platform", "", "Set platform if the image has several")
	return cmd
}

func summon(cmd *cobra.Command, docker command.Cli, d *daemonDialer, dir string, query url.Values) error {
	ctx := cmd.Context()
	if err := checkSummonTarget(dir); err != nil {
		return err
	}
	resp, err := d.call(ctx, http.MethodPost, "summon", query)
	if errdefs.IsNotFound(err) {
		if err := pullFirst(cmd, docker, query); err != nil {
			return err
		}
		resp, err = d.call(ctx, http.MethodPost, "summon", query)
	}
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return unpackSummoned(resp.Body, dir)
}

// pullFirst runs cradle's own pull command, as run does for an image that is not there.
func pullFirst(cmd *cobra.Command, docker command.Cli, query url.Values) error {
	image := query.Get("image")
	fmt.Fprintf(docker.Err(), "Unable to find image '%s' locally\n", image)
	pull := child(cmd.Root(), "pull")
	pull.SetContext(cmd.Context())
	if p := query.Get("platform"); p != "" {
		if err := pull.Flags().Set("platform", p); err != nil {
			return err
		}
	}
	return pull.RunE(pull, []string{image})
}

// checkSummonTarget refuses a directory with something in it, before any work is done.
func checkSummonTarget(dir string) error {
	entries, err := os.ReadDir(dir)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return err
	case len(entries) > 0:
		return fmt.Errorf("%s is not empty", dir)
	}
	return nil
}

// unpackSummoned unpacks the tar stream r into dir, which comes into being whole or not at all.
func unpackSummoned(r io.Reader, dir string) (err error) {
	dir = filepath.Clean(dir)
	partial, err := os.MkdirTemp(filepath.Dir(dir), "."+filepath.Base(dir)+".partial-")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(partial))
		}
	}()
	root, err := os.OpenRoot(partial)
	if err != nil {
		return err
	}
	defer root.Close()
	for archive := tar.NewReader(r); ; {
		h, err := archive.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return fmt.Errorf("reading the virtual machine from the daemon: %w", err)
		}
		if err := unpackEntry(root, h, archive); err != nil {
			return err
		}
	}
	if _, err := root.Stat(summonedFile); err != nil {
		return fmt.Errorf("the daemon sent no %s", summonedFile)
	}
	if err := os.Chmod(partial, 0o755); err != nil {
		return err
	}
	// Takes the place of an empty directory, fails on any other.
	return os.Rename(partial, dir)
}

// unpackEntry makes one directory or file below root. There is no need for anything else, so links, devices and
// names that lead out are refused; root keeps what remains inside.
func unpackEntry(root *os.Root, h *tar.Header, r io.Reader) error {
	name := filepath.Clean(h.Name)
	if !filepath.IsLocal(name) {
		return fmt.Errorf("the daemon sent an unsafe name: %q", h.Name)
	}
	switch h.Typeflag {
	case tar.TypeDir:
		return root.MkdirAll(name, 0o755)
	case tar.TypeReg:
	default:
		return fmt.Errorf("the daemon sent %q, which is neither a file nor a directory", h.Name)
	}
	if err := root.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	f, err := root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	if _, err := io.Copy(f, r); err != nil {
		return errors.Join(fmt.Errorf("unpacking %s: %w", h.Name, err), f.Close())
	}
	return f.Close()
}

// isPath tells a path from an image: no image reference begins with a slash or a dot.
func isPath(arg string) bool {
	return strings.HasPrefix(arg, "/") || strings.HasPrefix(arg, "./") || strings.HasPrefix(arg, "../")
}

// summonedDir tells whether arg, given in an image's place, names a summoned directory.
func summonedDir(arg string) (dir string, ok bool) {
	if !isPath(arg) {
		return "", false
	}
	info, err := os.Stat(filepath.Join(arg, summonedFile))
	if err != nil || !info.Mode().IsRegular() {
		return "", false
	}
	dir, err = filepath.Abs(arg)
	return dir, err == nil
}

// runSummoned lets run and create take a summoned directory in an image's place: the daemon finds it by a label.
func runSummoned(cmd *cobra.Command) {
	run := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if dir, ok := summonedDir(args[0]); ok {
			if err := cmd.Flags().Set("label", summonedLabel+"="+dir); err != nil {
				return withRunStatus(cmd, err)
			}
			args[0] = summonedImage(dir)
		}
		return run(cmd, args)
	}
}

// summonedLabel on a container names the directory it runs from.
const summonedLabel = "dev.cradle.summoned"

// summonedImage is the name to show for what runs from dir: that of the image it was made from, if its list still
// has one.
func summonedImage(dir string) string {
	var list struct {
		Image string `json:"image"`
	}
	b, err := os.ReadFile(filepath.Join(dir, summonedFile))
	if err == nil && json.Unmarshal(b, &list) == nil {
		if _, err := reference.ParseNormalizedNamed(list.Image); err == nil {
			return list.Image
		}
	}
	return "summoned"
}
