package main

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"

	"github.com/docker/cli/cli"
	"github.com/docker/cli/cli/command"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/spf13/cobra"

	"github.com/cradlevm/cradle/node"
)

func newSnapshotExport(docker command.Cli, d *daemonDialer) *cobra.Command {
	var noImage bool
	var compression string
	cmd := &cobra.Command{
		Use:   "export [OPTIONS] SNAPSHOT FILE|-",
		Short: "Write a snapshot to a file, for another host",
		Long: "Write a snapshot to a file, or to standard output, for `cradle snapshot import` on another host: memory, devices, disk\n" +
			"and image. The file holds the secrets that the processes had.",
		Args: cli.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			compress, err := compressorOf(compression)
			if err != nil {
				return err
			}
			if args[1] == "-" && docker.Out().IsTerminal() {
				return errors.New("refusing to write an archive to a terminal: name a file, or redirect")
			}
			query := url.Values{"image": {strconv.FormatBool(!noImage)}}
			resp, err := d.call(cmd.Context(), http.MethodGet, "snapshots/"+url.PathEscape(args[0])+"/archive", query)
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			if args[1] == "-" {
				return compressInto(docker.Out(), compress, resp.Body)
			}
			return writeWhole(args[1], func(w io.Writer) error { return compressInto(w, compress, resp.Body) })
		},
		DisableFlagsInUseLine: true,
	}
	cmd.Flags().BoolVar(&noImage, "no-image", false, "Leave the image out: it must be there already where the snapshot is imported")
	cmd.Flags().StringVar(&compression, "compress", "none", `Compress the archive ("none", "gzip", "zstd")`)
	return cmd
}

func newSnapshotImport(docker command.Cli, d *daemonDialer) *cobra.Command {
	var name string
	var trust bool
	cmd := &cobra.Command{
		Use:   "import [OPTIONS] FILE|-",
		Short: "Make a snapshot of a file that export has written",
		Long: "Make a snapshot of a file, or of standard input, that `cradle snapshot export` has written, compressed or not.\n\n" +
			"What is imported goes on as it was: the virtual machine monitor takes the memory and the state of devices in the file for\n" +
			"its own, and the processes keep whatever secrets they had. All of it is checked for damage, but who made it nobody can\n" +
			"tell. So --trust must be given: trust the file as you would trust a program that runs as the monitor's user.",
		Args: cli.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			in := io.ReadCloser(io.NopCloser(docker.In()))
			if args[0] != "-" {
				f, err := os.Open(args[0])
				if err != nil {
					return err
				}
				in = f
			} else if docker.In().IsTerminal() {
				return errors.New("refusing to read an archive from a terminal: name a file, or redirect")
			}
			defer in.Close()
			if !trust { // the daemon says why, and nothing need be sent for that
				in = io.NopCloser(http.NoBody)
			}
			resp, err := d.callWith(cmd.Context(), http.MethodPost, "snapshots/import", url.Values{"name": {name}, "trust": {strconv.FormatBool(trust)}}, in)
			if err != nil {
				return err
			}
			var s node.NamedSnapshot
			if err := readAnswer(resp, maxSnapshotAnswer, &s); err != nil {
				return err
			}
			fmt.Fprintln(docker.Out(), s.Name)
			return nil
		},
		DisableFlagsInUseLine: true,
	}
	cmd.Flags().StringVar(&name, "name", "", "Name of the snapshot (default: that which it had)")
	cmd.Flags().BoolVar(&trust, "trust", false, "Take the file for what it says that it is")
	return cmd
}

// compressor makes a stream that is compressed into another.
type compressor func(io.Writer) (io.WriteCloser, error)

func compressorOf(name string) (compressor, error) {
	switch name {
	case "none":
		return func(w io.Writer) (io.WriteCloser, error) { return uncompressed{w}, nil }, nil
	case "gzip":
		return func(w io.Writer) (io.WriteCloser, error) { return gzip.NewWriter(w), nil }, nil
	case "zstd":
		return func(w io.Writer) (io.WriteCloser, error) { return zstd.NewWriter(w) }, nil
	}
	return nil, fmt.Errorf("invalid --compress %q: one of none, gzip, zstd", name)
}

// uncompressed needs no end.
type uncompressed struct{ io.Writer }

// Close does nothing.
func (uncompressed) Close() error { return nil }

func compressInto(w io.Writer, compress compressor, r io.Reader) error {
	z, err := compress(w)
	if err != nil {
		return err
	}
	if _, err := io.Copy(z, r); err != nil {
		return fmt.Errorf("write archive: %w", err)
	}
	return z.Close()
}

// writeWhole makes a file, which nobody else may read, by write: it gets its name when all of it is there.
func writeWhole(path string, write func(io.Writer) error) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".partial-")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	if err := write(f); err != nil {
		return errors.Join(err, f.Close())
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
