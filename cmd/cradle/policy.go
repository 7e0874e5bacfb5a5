package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"

	"github.com/docker/cli/cli"
	"github.com/docker/cli/cli/command"
	"github.com/docker/cli/cli/command/formatter"
	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"github.com/cradlevm/cradle/api"
)

// policyHelp is what the commands say of targets.
const policyHelp = `
A target is PLACE[:PORTS][/PROTOCOL]:
  PLACE     an address (IPv6 in brackets when ports follow), a prefix, a name, *.name for what is below it,
            any, or host: the host's own services, at the network's gateway
  PORTS     80,443,8000-8010
  PROTOCOL  tcp, udp or icmp
The first rule that matches decides, and names come last: what an address's rule denies they do not open. A name that is denied
has neither ports nor protocol; the resolver answers neither for it nor for what is below it, but its addresses are not closed.
A rate is a bandwidth (500k, 10m: bytes a second; 10mbit: bits) and packets a second (1000pps), or both with a comma.`

// newPolicyCommand is `network policy`: what containers may send.
func newPolicyCommand(docker command.Cli, d *daemonDialer) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "policy COMMAND",
		Short: "Manage what containers may send",
		Args:  cli.NoArgs,
		RunE:  command.ShowHelp(docker.Err()),
	}
	cmd.AddCommand(newPolicySet(d), newPolicyList(docker, d), newPolicyRules(docker, d), newPolicyInspect(docker, d), newPolicyRemove(docker, d))
	return cmd
}

func newPolicySet(d *daemonDialer) *cobra.Command {
	var words policyWords
	var network string
	cmd := &cobra.Command{
		Use:   "set [OPTIONS] CONTAINER",
		Short: "Say what a container may send, from now on",
		Long: "Say what a container may send, from now on and for conversations that have begun too. The policy takes the place of\n" +
			"the one that there was. Without --network it is of all the container's networks, those that it comes to later among them.\n" + policyHelp,
		Example: "cradle network policy set --default deny --allow '*.example.org:443/tcp' --allow 10.0.0.0/8 web",
		Args:    cli.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			p, said, err := words.policy()
			if err != nil {
				return err
			}
			if !said {
				return errors.New("nothing to set: give rules, --default, rates or --file; `cradle network policy rm` takes a policy away")
			}
			body, err := json.Marshal(p)
			if err != nil {
				return err
			}
			resp, err := d.callWith(cmd.Context(), http.MethodPut, "networks/policies/"+url.PathEscape(args[0]), onNetwork(network), bytes.NewReader(body))
			if err != nil {
				return err
			}
			return resp.Body.Close()
		},
		DisableFlagsInUseLine: true,
	}
	words.install(cmd.Flags(), "")
	cmd.Flags().StringVar(&network, "network", "", "Only on this one of its networks")
	return cmd
}

func onNetwork(name string) url.Values {
	if name == "" {
		return nil
	}
	return url.Values{"network": {name}}
}

func newPolicyRemove(docker command.Cli, d *daemonDialer) *cobra.Command {
	var network string
	cmd := &cobra.Command{
		Use:     "rm [OPTIONS] CONTAINER [CONTAINER...]",
		Aliases: []string{"remove", "reset"},
		Short:   "Take the policies of containers away",
		Long: "Take the policies of containers away: everything may pass then, but to the host's own services.\n" +
			"With --network only what that network had of its own; the container's policy holds there again.",
		Args: cli.RequiresMinArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var errs []error
			for _, name := range args {
				resp, err := d.call(cmd.Context(), http.MethodDelete, "networks/policies/"+url.PathEscape(name), onNetwork(network))
				if err != nil {
					errs = append(errs, err)
					continue
				}
				errs = append(errs, resp.Body.Close())
				fmt.Fprintln(docker.Out(), name)
			}
			return errors.Join(errs...)
		},
		DisableFlagsInUseLine: true,
	}
	cmd.Flags().StringVar(&network, "network", "", "Only on this one of their networks")
	return cmd
}

func newPolicyInspect(docker command.Cli, d *daemonDialer) *cobra.Command {
	return &cobra.Command{
		Use:   "inspect CONTAINER [CONTAINER...]",
		Short: "Tell of containers' policies and what has passed them, in JSON",
		Args:  cli.RequiresMinArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return inspectEach[api.ContainerNetworkPolicy](docker, args, func(name string, into any) error {
				return readJSON(cmd, d, "networks/policies/"+name, into)
			})
		},
		DisableFlagsInUseLine: true,
	}
}

func newPolicyList(docker command.Cli, d *daemonDialer) *cobra.Command {
	var all bool
	var format string
	cmd := &cobra.Command{
		Use:     "ls [OPTIONS]",
		Aliases: []string{"list"},
		Short:   "List containers' policies and what has passed them",
		Args:    cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var list []api.ContainerNetworkPolicy
			if err := readJSON(cmd, d, "networks/policies", &list); err != nil {
				return err
			}
			return printPolicies(docker.Out(), list, all, format)
		},
		DisableFlagsInUseLine: true,
	}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "Also containers without a policy")
	cmd.Flags().StringVar(&format, "format", "", `Format output using a custom template ("table", "table TEMPLATE", "json" or a Go template)`)
	return cmd
}

// policyTable is what `network policy ls` prints without --format.
const policyTable = "table {{.Name}}\t{{.Network}}\t{{.Default}}\t{{.Rules}}\t{{.Sent}}\t{{.Received}}\t{{.Dropped}}"

func printPolicies(out io.Writer, list []api.ContainerNetworkPolicy, all bool, format string) error {
	if format == "" || format == formatter.TableFormatKey {
		format = policyTable
	}
	c := formatter.Context{Output: out, Format: formatter.Format(format)}
	return c.Write(&policyRow{HeaderContext: formatter.HeaderContext{Header: formatter.SubHeaderContext{
		"ID": "CONTAINER ID", "Name": "NAME", "Network": "NETWORK", "Default": "DEFAULT", "Rules": "RULES",
		"Sent": "SENT", "Received": "RECEIVED", "Dropped": "DROPPED",
	}}}, func(row func(formatter.SubContext) error) error {
		for _, one := range list {
			on := one.Networks
			if len(on) == 0 {
				on = []api.NetworkPolicyStatus{{Policy: one.Policy}}
			}
			for _, status := range on {
				if status.Policy == nil && !all {
					continue
				}
				if err := row(&policyRow{container: one, status: status}); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// policyRow is a container on a network, as a template sees it: a field for each method.
type policyRow struct {
	formatter.HeaderContext
	container api.ContainerNetworkPolicy
	status    api.NetworkPolicyStatus
}

// MarshalJSON is for --format json.
func (r *policyRow) MarshalJSON() ([]byte, error) { return formatter.MarshalJSON(r) }

// ID of the container, as short as `ps` has it.
func (r *policyRow) ID() string { return r.container.Container[:min(12, len(r.container.Container))] }

// Name of the container.
func (r *policyRow) Name() string { return r.container.Name }

// Network is the name of one that the container is on; empty when it is on none.
func (r *policyRow) Network() string { return r.status.Network }

// Default is what becomes of packets that no rule speaks of.
func (r *policyRow) Default() string {
	if p := r.status.Policy; p != nil && p.Default != "" {
		return p.Default
	}
	return "allow"
}

// Rules is how many there are.
func (r *policyRow) Rules() string {
	if r.status.Policy == nil {
		return "0"
	}
	return strconv.Itoa(len(r.status.Policy.Rules))
}

// Sent is what the container has sent that passed.
func (r *policyRow) Sent() string { return traffic(r.status.Egress) }

// Received is what has reached the container.
func (r *policyRow) Received() string { return traffic(r.status.Ingress) }

func traffic(t *api.Traffic) string {
	if t == nil {
		return "-"
	}
	return units.HumanSizeWithPrecision(float64(t.Bytes), 3)
}

// Dropped is how many frames did not pass, in both directions, for whatever reason.
func (r *policyRow) Dropped() string {
	if r.status.Egress == nil || r.status.Ingress == nil {
		return "-"
	}
	var n uint64
	for _, t := range []*api.Traffic{r.status.Egress, r.status.Ingress} {
		for _, dropped := range t.Dropped {
			n += dropped
		}
	}
	return strconv.FormatUint(n, 10)
}
