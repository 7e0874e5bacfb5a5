package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/docker/cli/cli/command"
	"github.com/docker/cli/cli/command/formatter"
	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"github.com/cradlevm/cradle/node"
)

// newCostCommand is `cost`: what containers use, and what their machines cost the host.
func newCostCommand(docker command.Cli, d *daemonDialer) *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:   "cost [OPTIONS] [CONTAINER...]",
		Short: "Show what running containers use and what their virtual machines cost the host",
		Long: "Show what running containers use and what their virtual machines cost the host.\n" +
			"What is used is the guest's own account, as in `stats`. Of the host's memory, the private part would be free\n" +
			"without the machine; the shared part it uses together with others. Processor time is since the beginning.",
		RunE: func(cmd *cobra.Command, args []string) error {
			costs, err := readCosts(cmd, d, args)
			return errors.Join(printCosts(docker.Out(), costs, format), err)
		},
		DisableFlagsInUseLine: true,
	}
	cmd.Flags().StringVar(&format, "format", "", `Format output using a custom template ("table", "table TEMPLATE", "json" or a Go template)`)
	return cmd
}

// statsInterval is how long `stats --host` shows one reading, as docker's stats does.
const statsInterval = time.Second

// costStats gives stats its --host: the table of `cost`, again and again.
func costStats(root *cobra.Command, docker command.Cli, d *daemonDialer) {
	for _, cmd := range existing(child(root, "stats"), child(child(root, "container"), "stats")) {
		var host bool
		cmd.Flags().BoolVar(&host, "host", false, "Show what virtual machines cost the host (private, shared) beside what is used in them")
		run := cmd.RunE
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			if !host {
				return run(cmd, args)
			}
			for _, other := range []string{"all", "no-trunc"} {
				if cmd.Flags().Changed(other) {
					return fmt.Errorf("conflicting options: --host and --%s", other)
				}
			}
			format, err := cmd.Flags().GetString("format")
			if err != nil {
				return err
			}
			once, err := cmd.Flags().GetBool("no-stream")
			if err != nil {
				return err
			}
			return showCosts(cmd, docker.Out(), d, args, format, once)
		}
	}
}

// showCosts prints what containers cost: once, or from the screen's top on until the command is ended.
func showCosts(cmd *cobra.Command, out io.Writer, d *daemonDialer, names []string, format string, once bool) error {
	for {
		costs, err := readCosts(cmd, d, names)
		if once {
			return errors.Join(printCosts(out, costs, format), err)
		}
		if err != nil {
			return err
		}
		var table bytes.Buffer
		if err := printCosts(&table, costs, format); err != nil {
			return err
		}
		// To the top; each line over what was there, and nothing below.
		frame := "\033[H" + strings.ReplaceAll(table.String(), "\n", "\033[K\n") + "\033[J"
		if _, err := io.WriteString(out, frame); err != nil {
			return err
		}
		select {
		case <-time.After(statsInterval):
		case <-cmd.Context().Done():
			return cmd.Context().Err()
		}
	}
}

// readCosts asks for those of the containers named, or of all by name.
func readCosts(cmd *cobra.Command, d *daemonDialer, names []string) (costs []node.Cost, err error) {
	if len(names) == 0 {
		if err := readJSON(cmd, d, "costs", &costs); err != nil {
			return nil, err
		}
		slices.SortFunc(costs, func(a, b node.Cost) int { return cmp.Compare(a.Name, b.Name) })
		return costs, nil
	}
	var errs []error
	for _, name := range names {
		var cost node.Cost
		if err := readJSON(cmd, d, "containers/"+name+"/cost", &cost); err != nil {
			errs = append(errs, err)
			continue
		}
		costs = append(costs, cost)
	}
	return costs, errors.Join(errs...)
}

// readJSON reads what the daemon answers at a path.
func readJSON(cmd *cobra.Command, d *daemonDialer, path string, into any) error {
	resp, err := d.call(cmd.Context(), http.MethodGet, path, nil)
	if err != nil {
		return err
	}
	return readAnswer(resp, 64<<20, into)
}

// readAnswer reads an answer of the daemon's, of limit bytes at most, and closes it.
func readAnswer(resp *http.Response, limit int64, into any) error {
	defer resp.Body.Close()
	if err := json.NewDecoder(io.LimitReader(resp.Body, limit)).Decode(into); err != nil {
		return fmt.Errorf("read the daemon's answer: %w", err)
	}
	return nil
}

// costTable is what `cost` prints without --format.
const costTable = "table {{.Name}}\t{{.GuestMemory}}\t{{.MachineMemory}}\t{{.HostPrivate}}\t{{.HostShared}}\t{{.GuestCPU}}\t{{.HostCPU}}"

func printCosts(out io.Writer, costs []node.Cost, format string) error {
	if format == "" || format == formatter.TableFormatKey {
		format = costTable
	}
	c := formatter.Context{Output: out, Format: formatter.Format(format)}
	return c.Write(&costRow{HeaderContext: formatter.HeaderContext{Header: formatter.SubHeaderContext{
		"ID": "CONTAINER ID", "Name": "NAME", "PID": "PID", "GuestMemory": "GUEST MEM", "MachineMemory": "MACHINE",
		"HostPrivate": "HOST PRIVATE", "HostShared": "HOST SHARED", "GuestCPU": "GUEST CPU", "HostCPU": "HOST CPU",
	}}}, func(row func(formatter.SubContext) error) error {
		for _, cost := range costs {
			if err := row(&costRow{cost: cost}); err != nil {
				return err
			}
		}
		return nil
	})
}

// costRow is one container, as a template sees it: a field for each method.
type costRow struct {
	formatter.HeaderContext
	cost node.Cost
}

// MarshalJSON is for --format json.
func (r *costRow) MarshalJSON() ([]byte, error) { return formatter.MarshalJSON(r) }

// ID of the container, as short as `ps` has it.
func (r *costRow) ID() string { return r.cost.ID[:min(12, len(r.cost.ID))] }

// Name of the container.
func (r *costRow) Name() string { return r.cost.Name }

// PID is the virtual machine's process.
func (r *costRow) PID() int { return r.cost.PID }

// GuestMemory is what the container uses, by the guest's account.
func (r *costRow) GuestMemory() string { return units.BytesSize(float64(r.cost.GuestMemory)) }

// MachineMemory is what the guest may use.
func (r *costRow) MachineMemory() string { return units.BytesSize(float64(r.cost.MachineMemory)) }

// HostPrivate is the host's memory that would be free without it.
func (r *costRow) HostPrivate() string { return units.BytesSize(float64(r.cost.HostPrivate)) }

// HostShared is the host's memory that it uses together with others.
func (r *costRow) HostShared() string { return units.BytesSize(float64(r.cost.HostShared)) }

// GuestCPU is the container's processor time.
func (r *costRow) GuestCPU() string { return seconds(r.cost.GuestCPU) }

// HostCPU is the virtual machine's processor time.
func (r *costRow) HostCPU() string { return seconds(r.cost.HostCPU) }

func seconds(nanos int64) string { return time.Duration(nanos).Round(10 * time.Millisecond).String() }
