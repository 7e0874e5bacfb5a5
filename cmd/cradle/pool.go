package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/docker/cli/cli"
	"github.com/docker/cli/cli/command"
	"github.com/docker/cli/cli/command/formatter"
	"github.com/docker/cli/opts"
	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"github.com/cradlevm/cradle/node"
	"github.com/cradlevm/cradle/pool"
)

// newPoolCommand is `pool`: what the daemon keeps ready.
func newPoolCommand(docker command.Cli, d *daemonDialer) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "pool",
		Short: "Manage the virtual machines that are kept ready",
		Long: "Manage the virtual machines that are kept ready.\n" +
			"The daemon keeps some of each size in demand, so that a container starts in one of them instead of booting its\n" +
			"own. How many follows demand, between a minimum and a maximum, within a budget of the host's memory. All but one of\n" +
			"a size are prepared for the images that were wanted lately, and then for containers of those images only.",
		Args: cli.NoArgs,
		RunE: command.ShowHelp(docker.Err()),
	}
	cmd.AddCommand(newPoolListCommand(docker, d), newPoolSetCommand(docker, d),
		newPoolChangeCommand(docker, d, "drain", "End all virtual machines that are ready",
			"End all virtual machines that are ready, and let go of the templates in memory.\n"+
				"A size is filled again when a container wants it again.", node.PoolSet{Change: pool.Change{Drain: true}}),
		newPoolChangeCommand(docker, d, "refill", "Make virtual machines ready now",
			"Make virtual machines ready now, of each size that was ever wanted and of the usual one, also where it has failed too\n"+
				"often. It answers at once; `pool ls` shows how far it is.", node.PoolSet{Change: pool.Change{Refill: true}}))
	return cmd
}

func newPoolListCommand(docker command.Cli, d *daemonDialer) *cobra.Command {
	var format string
	var quiet bool
	cmd := &cobra.Command{
		Use:     "ls [OPTIONS]",
		Aliases: []string{"list"},
		Short:   "List what is ready, by size",
		Args:    cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			resp, err := d.call(cmd.Context(), http.MethodGet, "pool", nil)
			if err != nil {
				return err
			}
			status, err := readPool(resp)
			if err != nil {
				return err
			}
			if status.Off && !quiet {
				fmt.Fprintln(docker.Err(), "The pool is off: every container boots its virtual machine.")
			}
			return printPool(docker.Out(), status, format, quiet)
		},
		DisableFlagsInUseLine: true,
	}
	cmd.Flags().StringVar(&format, "format", "", `Format output using a custom template ("table", "table TEMPLATE", "json" or a Go template)`)
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "Only display sizes")
	return cmd
}

func newPoolSetCommand(docker command.Cli, d *daemonDialer) *cobra.Command {
	var low, high int
	var back bool
	var memory opts.MemBytes
	cmd := &cobra.Command{
		Use:   "set [OPTIONS]",
		Short: "Change how much is kept ready",
		Long: "Change how much is kept ready. It holds for daemons that are started later, too, whatever they are told with --pool and\n" +
			"--pool-memory, until it is changed again; --default goes back to what the daemon was told.",
		Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			change := node.PoolSet{Default: back}
			if cmd.Flags().Changed("min") {
				change.Min = &low
			}
			if cmd.Flags().Changed("max") {
				change.Max = &high
			}
			if cmd.Flags().Changed("memory") {
				bytes := memory.Value()
				change.Memory = &bytes
			}
			if change == (node.PoolSet{}) {
				return fmt.Errorf("nothing to change: give --min, --max, --memory or --default")
			}
			return changePool(cmd.Context(), d, change)
		},
		DisableFlagsInUseLine: true,
	}
	cmd.Flags().IntVar(&low, "min", 0, "Virtual machines of each size in demand that are ready at least")
	cmd.Flags().IntVar(&high, "max", 0, "Virtual machines of each size that are ready at most (0: containers start from templates on the spot)")
	cmd.Flags().Var(&memory, "memory", "Host's memory for what is kept ready (0: an eighth of it)")
	cmd.Flags().BoolVar(&back, "default", false, "Forget what was set before, for what the daemon was started with")
	return cmd
}

func newPoolChangeCommand(_ command.Cli, d *daemonDialer, name, short, long string, change node.PoolSet) *cobra.Command {
	return &cobra.Command{
		Use: name, Short: short, Long: long, Args: cli.NoArgs,
		RunE:                  func(cmd *cobra.Command, _ []string) error { return changePool(cmd.Context(), d, change) },
		DisableFlagsInUseLine: true,
	}
}

func changePool(ctx context.Context, d *daemonDialer, change node.PoolSet) error {
	body, err := json.Marshal(change)
	if err != nil {
		return err
	}
	resp, err := d.callWith(ctx, http.MethodPost, "pool", nil, bytes.NewReader(body))
	if err != nil {
		return err
	}
	_, err = readPool(resp)
	return err
}

func readPool(resp *http.Response) (status pool.Status, err error) {
	return status, readAnswer(resp, 8<<20, &status)
}

// poolTable is what `pool ls` prints without --format.
const poolTable = "table {{.Memory}}\t{{.CPUs}}\t{{.Ready}}\t{{.Prepared}}\t{{.Wanted}}\t{{.Taken}}\t{{.Restored}}\t{{.Missed}}\t{{.HostMemory}}"

func printPool(out io.Writer, status pool.Status, format string, quiet bool) error {
	switch {
	case quiet:
		format = "{{.Memory}}/{{.CPUs}}"
	case format == "" || format == formatter.TableFormatKey:
		format = poolTable
	}
	c := formatter.Context{Output: out, Format: formatter.Format(format)}
	return c.Write(&poolRow{HeaderContext: formatter.HeaderContext{Header: formatter.SubHeaderContext{
		"Memory": "MEMORY", "CPUs": "CPUS", "Ready": "READY", "Prepared": "PREPARED", "TakenPrepared": "TAKEN PREPARED", "Filling": "FILLING", "Wanted": "WANTED", "Template": "TEMPLATE",
		"Taken": "TAKEN", "Restored": "RESTORED", "Missed": "MISSED", "HostMemory": "HOST MEMORY",
		"Min": "MIN", "Max": "MAX", "Budget": "BUDGET",
	}}}, func(row func(formatter.SubContext) error) error {
		for _, class := range status.Classes {
			if err := row(&poolRow{status: status, class: class}); err != nil {
				return err
			}
		}
		return nil
	})
}

// poolRow is one size, as a template sees it: a field for each method.
type poolRow struct {
	formatter.HeaderContext
	status pool.Status
	class  pool.ClassStatus
}

// MarshalJSON is for --format json.
func (r *poolRow) MarshalJSON() ([]byte, error) { return formatter.MarshalJSON(r) }

// Memory of a machine.
func (r *poolRow) Memory() string {
	return units.CustomSize("%g%s", float64(r.class.Memory), 1024, []string{"B", "KiB", "MiB", "GiB", "TiB"})
}

// CPUs of a machine.
func (r *poolRow) CPUs() string { return strconv.Itoa(r.class.CPUs) }

// Ready is how many can be taken.
func (r *poolRow) Ready() string { return strconv.Itoa(r.class.Ready) }

// Prepared is for which images how many of the ready ones are prepared, that first which was wanted last.
func (r *poolRow) Prepared() string {
	var all []string
	for _, p := range r.class.Prepared {
		if p.Ready > 0 {
			all = append(all, fmt.Sprintf("%s: %d", p.Name, p.Ready))
		}
	}
	return strings.Join(all, ", ")
}

// TakenPrepared were ready, and prepared for who wanted them.
func (r *poolRow) TakenPrepared() string { return strconv.FormatUint(r.class.TakenPrepared, 10) }

// Filling is how many are being made.
func (r *poolRow) Filling() string { return strconv.Itoa(r.class.Filling) }

// Wanted is how many there should be.
func (r *poolRow) Wanted() string { return strconv.Itoa(r.class.Wanted) }

// Template tells whether the template is in memory.
func (r *poolRow) Template() string { return strconv.FormatBool(r.class.Template) }

// Taken were ready when they were wanted.
func (r *poolRow) Taken() string { return strconv.FormatUint(r.class.Taken, 10) }

// Restored were made on the spot.
func (r *poolRow) Restored() string { return strconv.FormatUint(r.class.Restored, 10) }

// Missed had to boot.
func (r *poolRow) Missed() string { return strconv.FormatUint(r.class.Missed, 10) }

// HostMemory is what the ready ones and the template take of the host's.
func (r *poolRow) HostMemory() string {
	return units.BytesSize(float64(int64(r.class.Ready)*r.class.Private + r.class.Shared))
}

// Min is the pool's minimum.
func (r *poolRow) Min() string { return strconv.Itoa(r.status.Min) }

// Max is the pool's maximum.
func (r *poolRow) Max() string { return strconv.Itoa(r.status.Max) }

// Budget is the pool's.
func (r *poolRow) Budget() string { return units.BytesSize(float64(r.status.Settings.Memory)) }
