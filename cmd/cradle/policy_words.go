package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"

	"github.com/cradlevm/cradle/api"
)

// maxPolicyFile bounds a policy in a file, in bytes; the daemon's bound is the same.
const maxPolicyFile = 64 << 10

// policyWords is a network policy as flags say it.
type policyWords struct {
	file, fallback  string
	rules           []api.PolicyRule // in the order of the flags
	egress, ingress rateWord
}

// install adds the flags: --allow, --deny, --default, --file, and the rates. With a prefix those that would not say by
// themselves what they are about have it.
func (w *policyWords) install(f *pflag.FlagSet, prefix string) {
	fallback := "default"
	if prefix != "" {
		fallback = strings.TrimSuffix(prefix, "-")
	}
	f.Var(&ruleWord{w, true}, prefix+"allow", "What the container may send to: PLACE[:PORTS][/PROTOCOL]")
	f.Var(&ruleWord{w, false}, prefix+"deny", "What it may not send to")
	f.StringVar(&w.fallback, fallback, "", `What becomes of packets that the container sends to others ("allow", "deny")`)
	f.StringVar(&w.file, prefix+"file", "", "Network policy in a file, JSON or YAML (-: standard input)")
	f.Var(&w.egress, "egress-rate", "Limit of what the container sends (10m, 10mbit, 1000pps)")
	f.Var(&w.ingress, "ingress-rate", "Limit of what the container is sent")
}

// policy is what the flags say; said is false when they say nothing.
func (w *policyWords) policy() (p api.NetworkPolicy, said bool, err error) {
	rates := w.egress.text != "" || w.ingress.text != ""
	switch {
	case w.file != "" && (len(w.rules) > 0 || w.fallback != "" || rates):
		return p, false, errors.New("a policy is in a file or in other options, not in both")
	case w.file != "":
		p, err = readPolicy(w.file)
		return p, true, err
	}
	p = api.NetworkPolicy{Default: w.fallback, Rules: w.rules, Egress: w.egress.rate, Ingress: w.ingress.rate}
	return p, len(w.rules) > 0 || w.fallback != "" || rates, nil
}

// readPolicy reads a policy in YAML, of which JSON is a part. Fields that no policy has are refused.
func readPolicy(path string) (p api.NetworkPolicy, err error) {
	in := io.Reader(os.Stdin)
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return p, err
		}
		defer f.Close()
		in = f
	}
	b, err := io.ReadAll(io.LimitReader(in, maxPolicyFile+1))
	if err != nil {
		return p, fmt.Errorf("read network policy: %w", err)
	}
	if len(b) > maxPolicyFile {
		return p, fmt.Errorf("network policy %s has more than %d bytes", path, maxPolicyFile)
	}
	var loose map[string]any
	if err := yaml.Unmarshal(b, &loose); err != nil {
		return p, fmt.Errorf("network policy %s: %w", path, err)
	}
	strict, err := json.Marshal(loose)
	if err != nil {
		return p, fmt.Errorf("network policy %s: %w", path, err)
	}
	d := json.NewDecoder(bytes.NewReader(strict))
	d.DisallowUnknownFields()
	if err := d.Decode(&p); err != nil {
		return p, fmt.Errorf("network policy %s: %w", path, err)
	}
	return p, nil
}

// ruleWord is a flag that adds a rule behind those that there are.
type ruleWord struct {
	words *policyWords
	allow bool
}

// String implements pflag.Value.
func (r *ruleWord) String() string { return "" }

// Type implements pflag.Value.
func (r *ruleWord) Type() string { return "target" }

// Set implements pflag.Value.
func (r *ruleWord) Set(target string) error {
	if target == "" {
		return errors.New("a target is empty")
	}
	rule := api.PolicyRule{Deny: target}
	if r.allow {
		rule = api.PolicyRule{Allow: target}
	}
	r.words.rules = append(r.words.rules, rule)
	return nil
}

// rateWord is a flag with a rate.
type rateWord struct {
	text string
	rate api.TrafficRate
}

// String implements pflag.Value.
func (r *rateWord) String() string { return r.text }

// Type implements pflag.Value.
func (r *rateWord) Type() string { return "rate" }

// Set implements pflag.Value.
func (r *rateWord) Set(text string) error {
	r.text, r.rate = text, api.TrafficRate{}
	for _, one := range strings.Split(text, ",") {
		number, isPackets := strings.CutSuffix(one, "pps")
		if isPackets {
			n, err := strconv.ParseUint(number, 10, 32)
			if err != nil || n == 0 {
				return fmt.Errorf("%q is no rate of packets such as 1000pps", one)
			}
			r.rate.PacketsPerSecond = n
			continue
		}
		n, err := bandwidth(one)
		if err != nil || n <= 0 {
			return fmt.Errorf("%q is no bandwidth such as 10m (bytes a second) or 10mbit", one)
		}
		r.rate.BytesPerSecond = uint64(n)
	}
	return nil
}

// bandwidth reads bytes a second as docker writes sizes, or bits with decimal units.
func bandwidth(s string) (int64, error) {
	for unit, bits := range map[string]int64{"kbit": 1e3, "mbit": 1e6, "gbit": 1e9} {
		if number, ok := strings.CutSuffix(strings.ToLower(s), unit); ok {
			n, err := strconv.ParseUint(number, 10, 20)
			return int64(n) * bits / 8, err
		}
	}
	return units.RAMInBytes(s)
}

// runPolicy lets run and create give the container a policy from its first packet on.
func runPolicy(cmd *cobra.Command) {
	var words policyWords
	words.install(cmd.Flags(), "egress-")
	run := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		p, said, err := words.policy()
		if err != nil {
			return withRunStatus(cmd, err)
		}
		if said {
			b, err := json.Marshal(p)
			if err == nil {
				err = cmd.Flags().Set("label", api.LabelNetworkPolicy+"="+string(b))
			}
			if err != nil {
				return withRunStatus(cmd, err)
			}
		}
		return run(cmd, args)
	}
}
