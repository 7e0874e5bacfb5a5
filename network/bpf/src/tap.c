// The two programs on every TAP: from_guest sees each frame that a guest sends before anything else in the host does,
// to_guest each frame that is about to reach it. What is not known to be right is dropped, and counted by its reason.
//
// All TAPs of a network namespace share the maps; the key is the TAP's interface index. A TAP without an entry in
// endpoints passes nothing in either direction: that is what it is born with.
#include "kernel.h"

// Why a frame was dropped. bpf.go has the names, in this order; a test compares.
enum reason {
	PASS = 0,
	R_UNASSIGNED,      // the TAP is not attached to a network
	R_RUNT,            // too short for what it says it is, or longer inside than outside
	R_VLAN,            // 802.1Q or 802.1ad tags
	R_ETHERTYPE,       // neither IPv4, IPv6 nor ARP
	R_SOURCE_MAC,      // not the endpoint's
	R_SOURCE_IPV4,     // not the endpoint's
	R_SOURCE_IPV6,     // not the endpoint's
	R_ARP,             // contents are not the endpoint's, or not ARP for IPv4 on Ethernet
	R_NDP,             // neighbour discovery that tells of others' addresses
	R_ROUTER,          // router advertisements, redirects
	R_DHCP,            // DHCP of any kind: addresses come from the agent
	R_ICMPV6,          // other types than errors, echo and neighbour discovery
	R_REPORT,          // IGMP and MLD: bridges here do not snoop
	R_IP_OPTIONS,      // IPv4 options
	R_EXTENSION,       // IPv6 extension headers but one fragment header
	R_FRAGMENT,        // fragments where ports decide, or without the upper layer's header
	R_CHECKSUM,        // the kernel was asked to write a checksum over what was checked
	R_METADATA,        // to a cloud's metadata service, or to loopback
	R_POLICY,          // the endpoint's policy says no
	R_RATE,            // over the endpoint's rate limit
	R_REFLECTION,      // the guest's own broadcast, coming back
	REASONS,
};

enum { // endpoint.flags
	F_METADATA = 1, // may send to 169.254.0.0/16 and fd00:ec2::254
	F_POLICY = 2,   // rules decide about what the guest sends
	F_DENY = 4,     // what no rule speaks of is denied
};

// What a TAP's guest is. Addresses are in network order; zeros are none.
struct endpoint {
	u8 mac[6];
	u16 flags;
	u32 ip4;
	u32 gateway4;
	u8 ip6[16];
	u8 link_local[16];
	u8 gateway6[16];
};

struct {
	MAP_UINT(type, MAP_HASH);
	MAP_UINT(max_entries, 16384);
	MAP_UINT(map_flags, NO_PREALLOC);
	MAP_TYPE(key, u32);
	MAP_TYPE(value, struct endpoint);
} endpoints SEC(".maps");

enum { FROM_GUEST = 0, TO_GUEST = 1 };

struct counter_key {
	u32 ifindex;
	u32 direction;
};

struct counters {
	u64 packets; // passed
	u64 bytes;
	u64 dropped[REASONS]; // dropped[PASS] stays 0
};

struct {
	MAP_UINT(type, MAP_PERCPU_HASH);
	MAP_UINT(max_entries, 32768);
	MAP_UINT(map_flags, NO_PREALLOC);
	MAP_TYPE(key, struct counter_key);
	MAP_TYPE(value, struct counters);
} counters SEC(".maps");

// Rules are looked up by the longest prefix. The host has put into each prefix's list all rules whose prefix covers it,
// in the order of the policy, so that the first that matches is the first of the policy.
enum { ALLOW = 1, DENY = 2, MAX_RULES = 16, MAX_OPEN_RULES = 4 };

struct rule {
	u8 action;
	u8 protocol; // 0: any; ICMP: ICMPv6 too
	u16 low;     // ports, host order; 0 and 65535: any, and protocols without ports
	u16 high;
	u16 unused;
	u64 id;      // what it decides about is counted by this
};

struct prefix {
	u32 length; // bits of what follows
	u32 ifindex;
	u8 address[16]; // IPv4 as ::ffff:a.b.c.d
};

struct rules {
	u64 count;
	struct rule rule[MAX_RULES];
};

struct {
	MAP_UINT(type, MAP_LPM_TRIE);
	MAP_UINT(max_entries, 65536);
	MAP_UINT(map_flags, NO_PREALLOC);
	MAP_TYPE(key, struct prefix);
	MAP_TYPE(value, struct rules);
} rules SEC(".maps");

// Addresses that our resolver has answered for names that are allowed.
struct opened_key {
	u32 ifindex;
	u8 address[16];
};

struct opened {
	u64 until; // on the kernel's monotonic clock, ns
	u32 count;
	u32 unused;
	struct rule rule[MAX_OPEN_RULES];
};

struct {
	MAP_UINT(type, MAP_HASH);
	MAP_UINT(max_entries, 65536);
	MAP_UINT(map_flags, NO_PREALLOC);
	MAP_TYPE(key, struct opened_key);
	MAP_TYPE(value, struct opened);
} opened SEC(".maps");

// What each rule has decided about. The host makes the entries; what has none is not counted.
enum { DEFAULT_ALLOW = 1, DEFAULT_DENY = 2 }; // ids of what no rule speaks of

struct decided_key {
	u32 ifindex;
	u32 unused;
	u64 rule;
};

struct decided {
	u64 packets;
	u64 bytes;
};

struct {
	MAP_UINT(type, MAP_PERCPU_HASH);
	MAP_UINT(max_entries, 65536);
	MAP_UINT(map_flags, NO_PREALLOC);
	MAP_TYPE(key, struct decided_key);
	MAP_TYPE(value, struct decided);
} decided SEC(".maps");

// Conversations that others began with a guest under a policy, and those that began while a name was open.
struct flow {
	u32 ifindex;
	u8 remote[16];
	u16 remote_port; // network order; of ICMP echo the identifier
	u16 local_port;
	u8 protocol;
	u8 unused[3];
};

struct conversation {
	u64 until; // ns
	u64 rule;  // of the name that it began with; 0: another began it
};

struct {
	MAP_UINT(type, MAP_LRU_HASH);
	MAP_UINT(max_entries, 65536);
	MAP_TYPE(key, struct flow);
	MAP_TYPE(value, struct conversation);
} flows SEC(".maps");

#define SECOND 1000000000ULL
#define TCP_FLOW (5 * 24 * 3600 * SECOND)
#define OTHER_FLOW (180 * SECOND)

// A bucket that leaks; the virtual time is when it would be empty. Races between processors lose a packet's worth.
struct rate {
	u64 bytes_per_second; // 0: no limit
	u64 byte_burst;       // ns of the virtual time that may be ahead
	u64 byte_time;
	u64 packets_per_second;
	u64 packet_burst;
	u64 packet_time;
};

struct {
	MAP_UINT(type, MAP_HASH);
	MAP_UINT(max_entries, 32768);
	MAP_UINT(map_flags, NO_PREALLOC);
	MAP_TYPE(key, struct counter_key);
	MAP_TYPE(value, struct rate);
} rates SEC(".maps");

enum { ETH_IPV4 = 0x0800, ETH_ARP = 0x0806, ETH_IPV6 = 0x86dd, ETH_LEN = 14 };
enum { ICMP = 1, IGMP = 2, TCP = 6, UDP = 17, FRAGMENT = 44, ICMPV6 = 58 };

struct ethernet {
	u8 destination[6];
	u8 source[6];
	u16 type;
} __attribute__((packed));

struct arp {
	u16 hardware, protocol;
	u8 hardware_len, protocol_len;
	u16 operation;
	u8 sender_mac[6];
	u32 sender;
	u8 target_mac[6];
	u32 target;
} __attribute__((packed));

struct ipv4 {
	u8 version_length, tos;
	u16 total, id, fragment;
	u8 ttl, protocol;
	u16 checksum;
	u32 source, destination;
};

struct ipv6 {
	u32 version_flow;
	u16 payload;
	u8 next, hops;
	u8 source[16], destination[16];
};

struct fragment6 {
	u8 next, reserved;
	u16 offset;
	u32 id;
};

// packet is what the parsers leave for policies.
struct packet {
	u8 remote[16]; // the other side; IPv4 mapped
	u32 l4;        // offset of the upper layer's header
	u32 end;       // where the packet ends; the frame may go on
	u32 length;    // of the frame
	u16 remote_port, local_port;
	u8 protocol;
	u8 fragmented; // any fragment
	u8 later;      // a fragment without the upper layer's header
	u8 begins;     // may begin a conversation: TCP with SYN and no ACK, all else
	u8 neighbour;  // neighbour discovery, which no router passes on
};

INLINE int same(const void *a, const void *b, int len)
{
	const u8 *x = a, *y = b;
	u8 differs = 0;
#pragma unroll
	for (int i = 0; i < len; i++)
		differs |= x[i] ^ y[i];
	return !differs;
}

INLINE int zero(const u8 *a, int len)
{
	u8 any = 0;
#pragma unroll
	for (int i = 0; i < len; i++)
		any |= a[i];
	return !any;
}

// promised tells whether the kernel has been asked to complete a checksum later, anywhere in the frame: a guest does so
// in the header that goes with each frame (virtio_net_hdr), and the kernel believes it. The program is not told; but
// l4_csum_replace leaves such a frame alone.
INLINE int promised(struct __sk_buff *skb)
{
	u16 before, after;
	if (skb_load(skb, 12, &before, 2) || l4_csum_replace(skb, 12, 0, 1, 2) || skb_load(skb, 12, &after, 2))
		return 1;
	if (before == after)
		return 1;
	return skb_store(skb, 12, &before, 2, 0) != 0;
}

// overwrites tells whether a checksum is going to be written before offset end, over what was checked: a frame with the
// right source would leave with a wrong one. The only thing that knows is skb_change_tail: it refuses to cut such a frame
// in front of where the checksum will end. A frame that it does cut is lost, and dropped.
INLINE int overwrites(struct __sk_buff *skb, u32 end)
{
	return promised(skb) && skb_change_tail(skb, end + 1, 0) == 0;
}

CALL enum reason check_arp(struct __sk_buff *skb, const struct endpoint *e)
{
	struct arp a;
	if (skb_load(skb, ETH_LEN, &a, sizeof(a)))
		return R_RUNT;
	if (a.hardware != htons(1) || a.protocol != htons(ETH_IPV4) || a.hardware_len != 6 || a.protocol_len != 4)
		return R_ARP;
	if (a.operation != htons(1) && a.operation != htons(2))
		return R_ARP;
	if (!e->ip4 || !same(a.sender_mac, e->mac, 6))
		return R_ARP;
	if (a.sender != e->ip4 && !(a.sender == 0 && a.operation == htons(1))) // 0: a probe for duplicates
		return R_ARP;
	return promised(skb) ? R_CHECKSUM : PASS;
}

// check_neighbour looks at a neighbour solicitation (135), an advertisement (136) or a router solicitation (133).
CALL enum reason check_neighbour(struct __sk_buff *skb, const struct endpoint *e, const struct packet *p, u8 type, int unspecified)
{
	u32 at = p->l4, end = p->end;
	u8 target[16], flags, option[8];
	if (skb_load(skb, at + 4, &flags, 1))
		return R_RUNT;
	at += 8;
	if (type != 133) {
		if (at + 16 > end || skb_load(skb, at, target, 16))
			return R_RUNT;
		at += 16;
		int own = same(target, e->link_local, 16) || (!zero(e->ip6, 16) && same(target, e->ip6, 16));
		if (type == 136 && (!own || flags & 0x80)) // 0x80: "I am a router"
			return R_NDP;
		if (unspecified && (type != 135 || !own))
			return R_NDP;
	} else if (unspecified) {
		return R_NDP;
	}
	for (int i = 0; i < 3; i++) {
		if (at >= end)
			break;
		if (skb_load(skb, at, option, 8) || option[1] != 1)
			return R_NDP;
		if (option[0] == 1 || option[0] == 2) { // link-layer address of source, of target
			if (unspecified || !same(option + 2, e->mac, 6))
				return R_NDP;
		} else if (option[0] != 14) { // nonce
			return R_NDP;
		}
		at += 8;
	}
	if (at != end) // also when there are more options than anybody needs
		return R_NDP;
	return promised(skb) ? R_CHECKSUM : PASS;
}

// read_ports fills in what policies ask of the upper layer.
INLINE enum reason read_ports(struct __sk_buff *skb, struct packet *p, int from_guest)
{
	struct {
		u16 source, destination;
	} ports;
	p->begins = 1;
	if (p->later || (p->protocol != TCP && p->protocol != UDP))
		return p->fragmented && !p->later && p->l4 + 8 > p->end ? R_FRAGMENT : PASS;
	if (p->l4 + 4 > p->end || skb_load(skb, p->l4, &ports, 4))
		return p->fragmented ? R_FRAGMENT : R_RUNT;
	p->local_port = from_guest ? ports.source : ports.destination;
	p->remote_port = from_guest ? ports.destination : ports.source;
	if (p->protocol == TCP) {
		u8 flags;
		if (p->l4 + 14 > p->end || skb_load(skb, p->l4 + 13, &flags, 1))
			return p->fragmented ? R_FRAGMENT : R_RUNT;
		p->begins = (flags & 0x12) == 0x02;
	}
	return PASS;
}

// check_upper is for what a guest sends, whose addresses are right; the ports are those of DHCP's servers and clients.
INLINE enum reason check_upper(struct __sk_buff *skb, struct packet *p, u16 server, u16 client)
{
	enum reason r = read_ports(skb, p, 1);
	if (r)
		return r;
	if (p->protocol == UDP && !p->later &&
	    (p->local_port == htons(server) || (p->local_port == htons(client) && p->remote_port == htons(server))))
		return R_DHCP;
	u32 checked = p->l4 + (p->protocol == TCP ? 14 : 4);
	return overwrites(skb, checked) ? R_CHECKSUM : PASS;
}

INLINE void map_ipv4(u8 to[16], u32 address)
{
	__builtin_memset(to, 0, 10);
	to[10] = to[11] = 0xff;
	__builtin_memcpy(to + 12, &address, 4);
}

INLINE enum reason parse_ipv4(struct __sk_buff *skb, struct packet *p, struct ipv4 *h)
{
	if (skb_load(skb, ETH_LEN, h, sizeof(*h)))
		return R_RUNT;
	if (h->version_length >> 4 != 4)
		return R_RUNT;
	if (h->version_length != 0x45)
		return R_IP_OPTIONS;
	u32 total = ntohs(h->total);
	if (total < sizeof(*h) || total > skb->len - ETH_LEN)
		return R_RUNT;
	p->protocol = h->protocol;
	p->l4 = ETH_LEN + sizeof(*h);
	p->end = ETH_LEN + total;
	p->fragmented = (h->fragment & htons(0x3fff)) != 0;
	p->later = (h->fragment & htons(0x1fff)) != 0;
	return PASS;
}

CALL enum reason check_ipv4(struct __sk_buff *skb, const struct endpoint *e, struct packet *p)
{
	struct ipv4 h;
	enum reason r = parse_ipv4(skb, p, &h);
	if (r)
		return r;
	if (!e->ip4 || h.source != e->ip4)
		return R_SOURCE_IPV4;
	if (p->protocol == IGMP)
		return R_REPORT;
	if ((h.destination & htonl(0xff000000)) == htonl(0x7f000000))
		return R_METADATA;
	if ((h.destination & htonl(0xffff0000)) == htonl(0xa9fe0000) && !(e->flags & F_METADATA))
		return R_METADATA;
	map_ipv4(p->remote, h.destination);
	return check_upper(skb, p, 67, 68);
}

// parse_ipv6 leaves p at the upper layer. Other extension headers are refused: nothing that guests send needs them,
// and all evasions of filters do.
INLINE enum reason parse_ipv6(struct __sk_buff *skb, struct packet *p, struct ipv6 *h)
{
	if (skb_load(skb, ETH_LEN, h, sizeof(*h)))
		return R_RUNT;
	if (*(u8 *)h >> 4 != 6 || ntohs(h->payload) > skb->len - ETH_LEN - sizeof(*h))
		return R_RUNT;
	p->protocol = h->next;
	p->l4 = ETH_LEN + sizeof(*h);
	p->end = p->l4 + ntohs(h->payload);
	if (p->protocol == FRAGMENT) {
		struct fragment6 f;
		if (skb_load(skb, p->l4, &f, sizeof(f)))
			return R_RUNT;
		p->protocol = f.next;
		p->l4 += sizeof(f);
		p->fragmented = 1;
		p->later = (f.offset & htons(0xfff8)) != 0;
	}
	return PASS;
}

INLINE enum reason check_icmpv6(struct __sk_buff *skb, const struct endpoint *e, struct packet *p, int unspecified, u8 hops)
{
	u8 type;
	if (p->later)
		return unspecified ? R_SOURCE_IPV6 : PASS; // nothing without its first fragment, which was looked at
	if (p->l4 + 4 > p->end || skb_load(skb, p->l4, &type, 1))
		return R_RUNT;
	p->neighbour = type == 133 || type == 135 || type == 136;
	if (p->neighbour)
		return p->fragmented || hops != 255 ? R_NDP : check_neighbour(skb, e, p, type, unspecified);
	if (type == 134 || type == 137)
		return R_ROUTER;
	if ((type >= 130 && type <= 132) || type == 143)
		return R_REPORT;
	if (unspecified)
		return R_SOURCE_IPV6;
	if (type == 0 || (type > 4 && type != 128 && type != 129))
		return R_ICMPV6;
	return PASS;
}

CALL enum reason check_ipv6(struct __sk_buff *skb, const struct endpoint *e, struct packet *p)
{
	const u8 metadata[16] = {0xfd, 0x00, 0x0e, 0xc2, [14] = 0x02, 0x54};
	struct ipv6 h;
	enum reason r = parse_ipv6(skb, p, &h);
	if (r)
		return r;
	int unspecified = zero(h.source, 16);
	if (!unspecified && !same(h.source, e->link_local, 16) && (zero(e->ip6, 16) || !same(h.source, e->ip6, 16)))
		return R_SOURCE_IPV6;
	if (zero(e->link_local, 16))
		return R_SOURCE_IPV6; // no IPv6 at all on this network
	// Hop-by-hop options in front of ICMPv6 are how MLD comes, which every guest sends.
	if (p->protocol == 0)
		return h.destination[0] == 0xff && h.hops == 1 ? R_REPORT : R_EXTENSION;
	if (p->protocol == 43 || p->protocol == 44 || p->protocol == 51 || p->protocol == 60 || p->protocol == 135 ||
	    p->protocol == 139 || p->protocol == 140 || p->protocol >= 253)
		return R_EXTENSION;
	if (p->protocol == ICMPV6) {
		r = check_icmpv6(skb, e, p, unspecified, h.hops);
		if (r)
			return r;
	} else if (unspecified) {
		return R_SOURCE_IPV6;
	}
	if (same(h.destination, metadata, 16) && !(e->flags & F_METADATA))
		return R_METADATA;
	__builtin_memcpy(p->remote, h.destination, 16);
	return check_upper(skb, p, 547, 546);
}

INLINE int matches(const struct rule *r, const struct packet *p)
{
	u8 protocol = p->protocol == ICMPV6 ? ICMP : p->protocol;
	if (r->protocol && r->protocol != protocol)
		return 0;
	if (r->low == 0 && r->high == 65535)
		return 1;
	u16 port = ntohs(p->remote_port);
	return (p->protocol == TCP || p->protocol == UDP) && port >= r->low && port <= r->high;
}

INLINE void flow_of(struct flow *f, u32 ifindex, const struct packet *p)
{
	__builtin_memset(f, 0, sizeof(*f));
	f->ifindex = ifindex;
	__builtin_memcpy(f->remote, p->remote, 16);
	f->remote_port = p->remote_port;
	f->local_port = p->local_port;
	f->protocol = p->protocol;
}

// remember lets a conversation go on; one that there is already stays that of the rule it began with.
INLINE void remember(u32 ifindex, const struct packet *p, u64 rule)
{
	struct flow f;
	flow_of(&f, ifindex, p);
	u64 now = ktime_ns();
	struct conversation c = {now + (p->protocol == TCP ? TCP_FLOW : OTHER_FLOW), rule};
	struct conversation *old = map_lookup(&flows, &f);
	if (old && old->until > now)
		old->until = c.until;
	else
		map_update(&flows, &f, &c, 0);
}

INLINE void decide(u32 ifindex, const struct packet *p, u64 rule)
{
	struct decided_key k = {.ifindex = ifindex, .rule = rule};
	struct decided *d = map_lookup(&decided, &k);
	if (d) {
		d->packets++;
		d->bytes += p->length;
	}
}

// ask_policy is for packets that a guest sends to one receiver. Neighbour discovery and ARP never come here.
CALL int ask_policy(u32 ifindex, const struct endpoint *e, const struct packet *p)
{
	u64 now = ktime_ns();
	if (!e || !p)
		return R_POLICY;
	// Our resolver must be heard, or no name could ever be opened.
	int port_dns = p->remote_port == htons(53) && (p->protocol == UDP || p->protocol == TCP);
	u8 gateway4[16];
	map_ipv4(gateway4, e->gateway4);
	if (!p->fragmented && port_dns &&
	    ((e->gateway4 && same(p->remote, gateway4, 16)) || (!zero(e->gateway6, 16) && same(p->remote, e->gateway6, 16))))
		return PASS;
	if (p->fragmented)
		return R_FRAGMENT;

	u64 rule = 0; // that denies, unless the packet is an answer
	int denied = 0;
	struct prefix k = {.length = 32 + 128, .ifindex = ifindex};
	__builtin_memcpy(k.address, p->remote, 16);
	struct rules *found = map_lookup(&rules, &k);
	if (found) {
		for (u32 i = 0; i < MAX_RULES; i++) {
			if (i >= found->count)
				break;
			if (!matches(&found->rule[i], p))
				continue;
			if (found->rule[i].action != ALLOW) {
				denied = 1;
				rule = found->rule[i].id;
				break;
			}
			decide(ifindex, p, found->rule[i].id);
			return PASS;
		}
	}
	if (!denied && !(e->flags & F_DENY)) {
		decide(ifindex, p, DEFAULT_ALLOW);
		return PASS;
	}
	struct flow f;
	flow_of(&f, ifindex, p);
	struct conversation *c = map_lookup(&flows, &f);
	if (c && c->until > now) {
		decide(ifindex, p, c->rule);
		return PASS;
	}
	if (denied) {
		decide(ifindex, p, rule);
		return R_POLICY;
	}

	struct opened_key o = {.ifindex = ifindex};
	__builtin_memcpy(o.address, p->remote, 16);
	struct opened *open = map_lookup(&opened, &o);
	for (u32 i = 0; open && open->until > now && i < MAX_OPEN_RULES; i++) {
		if (i >= open->count)
			break;
		if (matches(&open->rule[i], p)) {
			if (p->begins)
				remember(ifindex, p, open->rule[i].id); // the conversation may outlast the name
			decide(ifindex, p, open->rule[i].id);
			return PASS;
		}
	}
	decide(ifindex, p, DEFAULT_DENY);
	return R_POLICY;
}

// spend takes cost from a bucket, and tells whether it was there.
INLINE int spend(u64 *time, u64 burst, u64 cost, u64 now)
{
	u64 t = *(volatile u64 *)time;
	if (t < now) {
		*(volatile u64 *)time = now;
		t = now;
	}
	if (t - now > burst)
		return 0;
	__sync_fetch_and_add(time, cost);
	return 1;
}

CALL int over_rate(u32 ifindex, u32 direction, u32 bytes)
{
	struct counter_key k = {ifindex, direction};
	struct rate *r = map_lookup(&rates, &k);
	if (!r)
		return 0;
	u64 now = ktime_ns();
	if (r->packets_per_second && !spend(&r->packet_time, r->packet_burst, SECOND / r->packets_per_second, now))
		return 1;
	return r->bytes_per_second && !spend(&r->byte_time, r->byte_burst, bytes * SECOND / r->bytes_per_second, now);
}

INLINE int count(struct __sk_buff *skb, u32 direction, u32 length, enum reason r)
{
	struct counter_key k = {skb->ifindex, direction};
	struct counters *c = map_lookup(&counters, &k);
	if (c) {
		if (r == PASS) {
			c->packets++;
			c->bytes += length;
		} else if (r < REASONS) {
			c->dropped[r]++;
		}
	}
	return r == PASS ? TC_ACT_UNSPEC : TC_ACT_SHOT;
}

INLINE enum reason check_from_guest(struct __sk_buff *skb)
{
	u32 ifindex = skb->ifindex;
	struct endpoint *e = map_lookup(&endpoints, &ifindex);
	if (!e)
		return R_UNASSIGNED;
	struct ethernet eth;
	if (skb_load(skb, 0, &eth, sizeof(eth)))
		return R_RUNT;
	if (skb->vlan_present || eth.type == htons(0x8100) || eth.type == htons(0x88a8))
		return R_VLAN;
	if (!same(eth.source, e->mac, 6))
		return R_SOURCE_MAC;
	if (over_rate(ifindex, FROM_GUEST, skb->len))
		return R_RATE;
	if (eth.type == htons(ETH_ARP))
		return check_arp(skb, e);

	struct packet p = {.length = skb->len};
	enum reason r;
	if (eth.type == htons(ETH_IPV4))
		r = check_ipv4(skb, e, &p);
	else if (eth.type == htons(ETH_IPV6))
		r = check_ipv6(skb, e, &p);
	else
		return R_ETHERTYPE;
	if (r || !(e->flags & F_POLICY) || p.neighbour)
		return r;
	return ask_policy(ifindex, e, &p);
}

SEC("tc/from_guest") int from_guest(struct __sk_buff *skb)
{
	u32 length = skb->len; // before anything may cut it
	return count(skb, FROM_GUEST, length, check_from_guest(skb));
}

// note_conversation lets a guest under a policy answer those that spoke to it first.
INLINE void note_conversation(struct __sk_buff *skb, u32 ifindex)
{
	struct packet p = {};
	u16 type;
	if (skb_load(skb, 12, &type, 2))
		return;
	if (type == htons(ETH_IPV4)) {
		struct ipv4 h;
		if (parse_ipv4(skb, &p, &h))
			return;
		map_ipv4(p.remote, h.source);
	} else if (type == htons(ETH_IPV6)) {
		struct ipv6 h;
		if (parse_ipv6(skb, &p, &h))
			return;
		__builtin_memcpy(p.remote, h.source, 16);
	} else {
		return;
	}
	if (p.later || read_ports(skb, &p, 0) || !p.begins)
		return;
	if (p.protocol == ICMP || p.protocol == ICMPV6) {
		u8 kind;
		if (skb_load(skb, p.l4, &kind, 1) || kind != (p.protocol == ICMP ? 8 : 128)) // echo requests only
			return;
	}
	remember(ifindex, &p, 0);
}

INLINE enum reason check_to_guest(struct __sk_buff *skb)
{
	u32 ifindex = skb->ifindex;
	struct endpoint *e = map_lookup(&endpoints, &ifindex);
	if (!e)
		return R_UNASSIGNED;
	if (skb->vlan_present)
		return R_VLAN;
	// Ports are in hairpin mode, so that a guest reaches itself by a published port; what it sends to all is not for it.
	struct ethernet eth;
	if (skb_load(skb, 0, &eth, sizeof(eth)))
		return R_RUNT;
	if (eth.destination[0] & 1 && same(eth.source, e->mac, 6))
		return R_REFLECTION;
	if (over_rate(ifindex, TO_GUEST, skb->len))
		return R_RATE;
	if (e->flags & F_POLICY)
		note_conversation(skb, ifindex);
	return PASS;
}

SEC("tc/to_guest") int to_guest(struct __sk_buff *skb)
{
	return count(skb, TO_GUEST, skb->len, check_to_guest(skb));
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
