package main

import (
	"io"
	"net/url"
	"strconv"

	"github.com/docker/cli/cli"
	"github.com/docker/cli/cli/command"
	"github.com/docker/cli/cli/command/formatter"
	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"github.com/cradlevm/cradle/api"
)

func newPolicyRules(docker command.Cli, d *daemonDialer) *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:   "rules [OPTIONS] CONTAINER [CONTAINER...]",
		Short: "List the rules of containers' policies and what each has decided about",
		Long: "List the rules of containers' policies and what each has decided about since it is there, also while others changed:\n" +
			"packets that the container sent, and their bytes; of a name that is denied, the questions that were not answered.\n" +
			"The last row is what no rule speaks of. Answers to those who spoke to the container first are nobody's.",
		Args: cli.RequiresMinArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var list []api.ContainerNetworkPolicy
			for _, name := range args {
				var one api.ContainerNetworkPolicy
				if err := readJSON(cmd, d, "networks/policies/"+url.PathEscape(name), &one); err != nil {
					return err
				}
				list = append(list, one)
			}
			return printRules(docker.Out(), list, format)
		},
		DisableFlagsInUseLine: true,
	}
	cmd.Flags().StringVar(&format, "format", "", `Format output using a custom template ("table", "table TEMPLATE", "json" or a Go template)`)
	return cmd
}

// rulesTable is what `network policy rules` prints without --format.
const rulesTable = "table {{.Name}}\t{{.Network}}\t{{.Action}}\t{{.Target}}\t{{.Packets}}\t{{.Bytes}}"

func printRules(out io.Writer, list []api.ContainerNetworkPolicy, format string) error {
	if format == "" || format == formatter.TableFormatKey {
		format = rulesTable
	}
	c := formatter.Context{Output: out, Format: formatter.Format(format)}
	return c.Write(&ruleRow{HeaderContext: formatter.HeaderContext{Header: formatter.SubHeaderContext{
		"Name": "NAME", "Network": "NETWORK", "Action": "ACTION", "Target": "TARGET", "Packets": "PACKETS", "Bytes": "BYTES",
	}}}, func(row func(formatter.SubContext) error) error {
		for _, one := range list {
			for _, status := range one.Networks {
				for _, r := range ruleRows(one.Name, status) {
					if err := row(r); err != nil {
						return err
					}
				}
			}
		}
		return nil
	})
}

// ruleRows are the rules of a container on a network, and the default.
func ruleRows(name string, status api.NetworkPolicyStatus) []*ruleRow {
	if status.Policy == nil {
		return nil
	}
	var rows []*ruleRow
	for i, r := range status.Policy.Rules {
		row := &ruleRow{name: name, network: status.Network, rule: r}
		if i < len(status.Rules) {
			row.decided = &status.Rules[i].Decided
		}
		rows = append(rows, row)
	}
	rest := api.PolicyRule{Allow: "default"}
	if status.Policy.Default == "deny" {
		rest = api.PolicyRule{Deny: "default"}
	}
	return append(rows, &ruleRow{name: name, network: status.Network, rule: rest, decided: status.Default})
}

// ruleRow is a rule as a template sees it: a field for each method.
type ruleRow struct {
	formatter.HeaderContext
	name, network string
	rule          api.PolicyRule
	decided       *api.Decided // nil: it is not known
}

// MarshalJSON is for --format json.
func (r *ruleRow) MarshalJSON() ([]byte, error) { return formatter.MarshalJSON(r) }

// Name of the container.
func (r *ruleRow) Name() string { return r.name }

// Network is the name of the one that the rule is for.
func (r *ruleRow) Network() string { return r.network }

// Action is "allow" or "deny".
func (r *ruleRow) Action() string {
	if r.rule.Allow != "" {
		return "allow"
	}
	return "deny"
}

// Target as the policy has it; "default" for what no rule speaks of.
func (r *ruleRow) Target() string { return r.rule.Allow + r.rule.Deny }

// Packets that the rule has decided about.
func (r *ruleRow) Packets() string {
	if r.decided == nil {
		return "-"
	}
	return strconv.FormatUint(r.decided.Packets, 10)
}

// Bytes of those.
func (r *ruleRow) Bytes() string {
	if r.decided == nil {
		return "-"
	}
	return units.HumanSizeWithPrecision(float64(r.decided.Bytes), 3)
}
