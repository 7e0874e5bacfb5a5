// Package egress is what an endpoint's policy comes to: rules of addresses, what names open, and rates. The kernel's datapath
// gives them to the programs of package bpf; for user-mode networks, Filter decides as those do.
package egress

import (
	"net/netip"
	"time"
)

// Limits of a policy, which are those of the programs in the kernel.
const (
	MaxRules     = 16 // that speak of any one address
	MaxOpenRules = 4  // that speak of any one name
)

// Ids of what becomes of packets that no rule speaks of, which is counted as a rule's is.
const (
	DefaultAllow uint64 = 1
	DefaultDeny  uint64 = 2
)

// Rule allows or denies what a guest sends. The first that matches decides.
type Rule struct {
	Allow     bool
	Prefix    netip.Prefix // the other side
	Protocol  uint8        // IP protocol number; 0: any; 1 (ICMP): ICMPv6 too
	Low, High uint16       // ports of the other side; 0 and 0: any
	ID        uint64       // what it decides about is counted by this; rules may share one
}

// Rate limits one direction; zeros are no limit. What is over it is dropped, not delayed.
type Rate struct {
	BytesPerSecond   uint64
	PacketsPerSecond uint64
	Burst            time.Duration // of traffic at the full rate that may come at once; 0: 100 ms
}

// DefaultBurst is that of a Rate without one.
const DefaultBurst = 100 * time.Millisecond

// Count is what a rule has decided about.
type Count struct {
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"` // whole frames
}

// Policy is all that is asked of an endpoint's packets.
type Policy struct {
	Rules   []Rule
	Deny    bool     // what neither rules nor open addresses speak of is denied
	Counted []uint64 // ids to be counted beside those of Rules: of names, of the default
	Egress  Rate     // what the guest sends
	Ingress Rate     // what reaches it
}

// Asks tells whether the policy is about more than rates.
func (p Policy) Asks() bool { return p.Deny || len(p.Rules) > 0 }

// IDs are all that is counted.
func (p Policy) IDs() map[uint64]bool {
	all := map[uint64]bool{}
	for _, r := range p.Rules {
		all[r.ID] = true
	}
	for _, id := range p.Counted {
		all[id] = true
	}
	delete(all, 0)
	return all
}
