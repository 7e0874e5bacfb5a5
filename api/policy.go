package api

// NetworkPolicy says what a container may send on a network, and how much it may send and be sent. The zero NetworkPolicy allows
// everything but the host's own services. It is JSON in the daemon's API, in files and in the label LabelNetworkPolicy.
type NetworkPolicy struct {
	// Default is what becomes of packets that no rule speaks of: "allow" or "deny". Empty is "allow", but not where a rule
	// allows other things than the host: then it must be said.
	Default string       `json:"default,omitempty"`
	Rules   []PolicyRule `json:"rules,omitempty"` // the first that matches decides; those of names come last
	Egress  TrafficRate  `json:"egress,omitzero"` // what the container sends
	Ingress TrafficRate  `json:"ingress,omitzero"`
}

// PolicyRule has one of its two targets, which are of the form
//
//	PLACE[:PORTS][/PROTOCOL]
//
// PLACE is an address, a prefix (10.0.0.0/8), "any", "host" (the host's own services, at the network's gateway) or a name:
// "example.org", or "*.example.org" for what is below it. A name that is denied has neither ports nor protocol, and what is below it
// is denied too: the resolver does not answer for it. IPv6 stands in brackets when ports follow. PORTS
// are ports and ranges, with commas between them (80,443,8000-8010); PROTOCOL is tcp, udp or icmp.
type PolicyRule struct {
	Allow string `json:"allow,omitempty"`
	Deny  string `json:"deny,omitempty"`
}

// TrafficRate limits one direction; zeros are no limit. What is over it is dropped.
type TrafficRate struct {
	BytesPerSecond   uint64 `json:"bytesPerSecond,omitempty"`
	PacketsPerSecond uint64 `json:"packetsPerSecond,omitempty"`
	Burst            string `json:"burst,omitempty"` // of traffic at the full rate that may come at once, as "100ms", which it is when empty
}

// LabelNetworkPolicy is the label by which a container gets a policy when it is made: a NetworkPolicy as JSON, of all its
// networks. An image's label of this name means nothing.
const LabelNetworkPolicy = "dev.cradle.network.policy"

// ContainerNetworkPolicy tells of a container's policies.
type ContainerNetworkPolicy struct {
	Container string                `json:"container"`          // id
	Name      string                `json:"name"`               // without a slash
	Policy    *NetworkPolicy        `json:"policy"`             // of all networks that have none of their own; null: there is none
	Networks  []NetworkPolicyStatus `json:"networks,omitempty"` // that the container is on
}

// NetworkPolicyStatus tells of a container on one network.
type NetworkPolicyStatus struct {
	Network string         `json:"network"` // name
	Own     bool           `json:"own,omitempty"`
	Policy  *NetworkPolicy `json:"policy"`            // that is in force here; null: there is none
	Rules   []RuleTraffic  `json:"rules,omitempty"`   // Policy's, in its order; none while the container does not run
	Default *Decided       `json:"default,omitempty"` // packets that no rule spoke of; null where the policy says nothing of addresses
	Egress  *Traffic       `json:"egress,omitempty"`  // what the container has sent since it came to the network
	Ingress *Traffic       `json:"ingress,omitempty"` // what has reached it
}

// RuleTraffic is a rule and what it has decided about.
type RuleTraffic struct {
	PolicyRule
	Decided
}

// Decided counts what the container has sent and a rule has allowed or denied since the rule is there: a change of others does not
// begin it anew. Of a name that is denied, Packets are the questions that were not answered.
type Decided struct {
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"` // of whole frames
}

// Traffic counts frames in one direction.
type Traffic struct {
	Packets uint64            `json:"packets"` // that passed
	Bytes   uint64            `json:"bytes"`   // of those
	Dropped map[string]uint64 `json:"dropped"` // frames, by reason: "policy", "rate", "source-mac", …
}
