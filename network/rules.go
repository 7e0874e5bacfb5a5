package network

import (
	"encoding/binary"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// chainOf is one chain and its rules, of which firewall's comment tells in short.
type chainOf struct {
	chain *nftables.Chain
	rules []rule
}

// Registers of 16 bytes; word(n) is the n-th of the registers of 4 bytes that they are made of.
const reg1, reg2 = 1, 2

func word(n uint32) uint32 { return unix.NFT_REG32_00 + n }

// chains are the table's chains, those that are jumped to first.
func chains(t *nftables.Table, s *tableSets) []chainOf {
	base := func(name string, kind nftables.ChainType, hook *nftables.ChainHook, priority *nftables.ChainPriority) *nftables.Chain {
		return &nftables.Chain{Name: name, Table: t, Type: kind, Hooknum: hook, Priority: priority}
	}
	plain := func(name string) *nftables.Chain { return &nftables.Chain{Name: name, Table: t} }
	filter, nat := nftables.ChainTypeFilter, nftables.ChainTypeNAT
	return []chainOf{
		{plain("guests"), guestRules(s)},
		{plain("host"), hostRules(s)},
		{plain("publish"), publishRules(s)},
		{base("forward", filter, nftables.ChainHookForward, nftables.ChainPriorityFilter), []rule{
			join(in(s.bridges), jump("guests")),
			join(out(s.bridges), jump("guests")),
		}},
		{base("input", filter, nftables.ChainHookInput, nftables.ChainPriorityFilter), []rule{
			join(in(s.bridges), jump("host")),
		}},
		{base("prerouting", nat, nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest), []rule{
			join(toLocal(), jump("publish")),
		}},
		{base("output", nat, nftables.ChainHookOutput, nftables.ChainPriorityNATDest), []rule{
			join(ipv4(), load(16, 4), mask(4, 8), notEqual([]byte{127, 0, 0, 0}), toLocal(), jump("publish")),
			join(ipv6(), load(24, 16), notEqual(append(make([]byte, 15), 1)), toLocal(), jump("publish")),
		}},
		{base("postrouting", nat, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource), []rule{
			// A guest that reaches another through the host's address must get its answers through the host too.
			join(out(s.bridges), published(), ipv4(), load(12, 4), member(s.guests4), masquerade()),
			join(out(s.bridges), published(), ipv6(), load(8, 16), member(s.guests6), masquerade()),
			join(notOut(s.bridges), ipv4(), load(12, 4), member(s.masked4), masquerade()),
			join(notOut(s.bridges), ipv6(), load(8, 16), member(s.masked6), masquerade()),
		}},
	}
}

// guestRules are for what is forwarded from or to a guest. What comes to their end is a guest's way out.
func guestRules(s *tableSets) []rule {
	metadata6 := []byte{0xfd, 0x00, 0x0e, 0xc2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x02, 0x54}
	return []rule{
		join(state(expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED), accept()),
		join(meta(expr.MetaKeyIIFNAME, reg1), meta(expr.MetaKeyOIFNAME, reg2), member(s.loops), accept()),
		join(state(expr.CtStateBitINVALID), drop()),
		join(in(s.internal), drop()),
		join(out(s.internal), drop()),
		join(in(s.bridges), notIn(s.metadata), ipv4(), load(16, 4), mask(4, 16), equal([]byte{169, 254, 0, 0}), drop()),
		join(in(s.bridges), notIn(s.metadata), ipv6(), load(24, 16), equal(metadata6), drop()),
		join(in(s.bridges), upper(unix.IPPROTO_ICMPV6), discovery(), drop()), // which is for neighbours: no policy is asked of it
		join(published(), accept()),
		join(out(s.bridges), drop()),
	}
}

// hostRules are for what guests send to the host itself.
func hostRules(s *tableSets) []rule {
	at := func(family rule, offset, size uint32, set *nftables.Set) rule { // the guest's own gateway
		return join(family, meta(expr.MetaKeyIIFNAME, reg1), loadTo(word(4), offset, size), member(set))
	}
	gate4, gate6 := at(ipv4(), 16, 4, s.resolvers4), at(ipv6(), 24, 16, s.resolvers6)
	dns := func(protocol byte) rule { return join(upper(protocol), header(2, 2), equal([]byte{0, 53})) }
	icmp := func(protocol, kind byte) rule { return join(upper(protocol), header(0, 1), equal([]byte{kind})) }
	// What a guest began is asked again with each packet, so that a policy that closes a port ends what goes through it.
	rules := []rule{join(state(expr.CtStateBitESTABLISHED), reply(), accept()), join(state(expr.CtStateBitRELATED), accept())}
	for _, gate := range []rule{gate4, gate6} {
		rules = append(rules, join(gate, dns(unix.IPPROTO_UDP), accept()), join(gate, dns(unix.IPPROTO_TCP), accept()))
	}
	open := func(gate rule, protocol byte, source, size uint32, set, anyPort *nftables.Set) []rule {
		guest := join(gate, upper(protocol), meta(expr.MetaKeyL4PROTO, word(0)), loadTo(word(1), source, size))
		port := rule{&expr.Payload{DestRegister: word(1 + size/4), Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2}}
		return []rule{join(guest, member(anyPort), accept()), join(guest, port, member(set), accept())}
	}
	for _, protocol := range []byte{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
		rules = append(rules, open(gate4, protocol, 12, 4, s.hosts4, s.anyHosts4)...)
		rules = append(rules, open(gate6, protocol, 8, 16, s.hosts6, s.anyHosts6)...)
	}
	return append(rules,
		join(gate4, icmp(unix.IPPROTO_ICMP, 8), accept()),
		join(gate6, icmp(unix.IPPROTO_ICMPV6, 128), accept()),
		join(icmp(unix.IPPROTO_ICMPV6, 135), accept()),
		join(icmp(unix.IPPROTO_ICMPV6, 136), accept()),
		drop(),
	)
}

// publishRules send what comes for a published port to the guest.
func publishRules(s *tableSets) []rule {
	protocol, port := meta(expr.MetaKeyL4PROTO, word(0)), func(to uint32) rule {
		return rule{&expr.Payload{DestRegister: to, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2}}
	}
	transport := func(family rule) []rule {
		return []rule{join(family, upper(unix.IPPROTO_TCP)), join(family, upper(unix.IPPROTO_UDP))}
	}
	var rules []rule
	for _, begin := range transport(ipv4()) {
		to := func(m *nftables.Set) rule { return join(find(m), dnat(unix.NFPROTO_IPV4, reg1, word(1))) }
		rules = append(rules,
			join(begin, protocol, loadTo(word(1), 16, 4), port(word(2)), to(s.ports4)),
			join(begin, protocol, port(word(1)), to(s.anyPorts4)))
	}
	for _, begin := range transport(ipv6()) {
		to := func(m *nftables.Set) rule { return join(find(m), dnat(unix.NFPROTO_IPV6, reg1, word(4))) }
		rules = append(rules,
			join(begin, protocol, loadTo(word(1), 24, 16), port(word(5)), to(s.ports6)),
			join(begin, protocol, port(word(1)), to(s.anyPorts6)))
	}
	return rules
}

func join(parts ...rule) rule {
	var r rule
	for _, p := range parts {
		r = append(r, p...)
	}
	return r
}

func meta(key expr.MetaKey, to uint32) rule { return rule{&expr.Meta{Key: key, Register: to}} }

func member(s *nftables.Set) rule {
	return rule{&expr.Lookup{SourceRegister: reg1, SetName: s.Name, SetID: s.ID}}
}

func find(m *nftables.Set) rule {
	return rule{&expr.Lookup{SourceRegister: reg1, DestRegister: reg1, IsDestRegSet: true, SetName: m.Name, SetID: m.ID}}
}

func notMember(s *nftables.Set) rule {
	return rule{&expr.Lookup{SourceRegister: reg1, SetName: s.Name, SetID: s.ID, Invert: true}}
}

func in(s *nftables.Set) rule     { return join(meta(expr.MetaKeyIIFNAME, reg1), member(s)) }
func notIn(s *nftables.Set) rule  { return join(meta(expr.MetaKeyIIFNAME, reg1), notMember(s)) }
func out(s *nftables.Set) rule    { return join(meta(expr.MetaKeyOIFNAME, reg1), member(s)) }
func notOut(s *nftables.Set) rule { return join(meta(expr.MetaKeyOIFNAME, reg1), notMember(s)) }

func equal(b []byte) rule    { return rule{&expr.Cmp{Op: expr.CmpOpEq, Register: reg1, Data: b}} }
func notEqual(b []byte) rule { return rule{&expr.Cmp{Op: expr.CmpOpNeq, Register: reg1, Data: b}} }

func ipv4() rule { return join(meta(expr.MetaKeyNFPROTO, reg1), equal([]byte{unix.NFPROTO_IPV4})) }
func ipv6() rule { return join(meta(expr.MetaKeyNFPROTO, reg1), equal([]byte{unix.NFPROTO_IPV6})) }

func upper(protocol byte) rule { return join(meta(expr.MetaKeyL4PROTO, reg1), equal([]byte{protocol})) }

// load puts bytes of the network header into reg1, loadTo into any register; header those of the transport header.
func load(offset, size uint32) rule { return loadTo(reg1, offset, size) }

func loadTo(to, offset, size uint32) rule {
	return rule{&expr.Payload{DestRegister: to, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size}}
}

func header(offset, size uint32) rule {
	return rule{&expr.Payload{DestRegister: reg1, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: size}}
}

// discovery are ICMPv6's messages of neighbours and routers.
func discovery() rule {
	return join(header(0, 1), rule{&expr.Range{Op: expr.CmpOpEq, Register: reg1, FromData: []byte{133}, ToData: []byte{137}}})
}

// mask keeps the first bits of size bytes in reg1.
func mask(size, bits uint32) rule {
	m := make([]byte, size)
	for b := range bits {
		m[b/8] |= 0x80 >> (b % 8)
	}
	return rule{&expr.Bitwise{SourceRegister: reg1, DestRegister: reg1, Len: size, Mask: m, Xor: make([]byte, size)}}
}

// bits matches when a word that the kernel keeps about a connection has one of them set.
func bits(key expr.CtKey, want uint32) rule {
	return rule{
		&expr.Ct{Key: key, Register: reg1},
		&expr.Bitwise{SourceRegister: reg1, DestRegister: reg1, Len: 4, Mask: binary.NativeEndian.AppendUint32(nil, want), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg1, Data: make([]byte, 4)},
	}
}

func state(want uint32) rule { return bits(expr.CtKeySTATE, want) }

// reply is a packet of whoever did not begin the conversation.
func reply() rule {
	const direction = 1 // IP_CT_DIR_REPLY
	return rule{&expr.Ct{Key: expr.CtKeyDIRECTION, Register: reg1}, &expr.Cmp{Op: expr.CmpOpEq, Register: reg1, Data: []byte{direction}}}
}

// published is a connection whose destination was changed (IPS_DST_NAT).
func published() rule { return bits(expr.CtKeySTATUS, 1<<5) }

// toLocal is for an address of the host's own.
func toLocal() rule {
	return join(rule{&expr.Fib{Register: reg1, FlagDADDR: true, ResultADDRTYPE: true}},
		equal(binary.NativeEndian.AppendUint32(nil, unix.RTN_LOCAL)))
}

func dnat(family, address, port uint32) rule {
	return rule{&expr.NAT{Type: expr.NATTypeDestNAT, Family: family, RegAddrMin: address, RegProtoMin: port}}
}

func masquerade() rule { return rule{&expr.Masq{}} }
func accept() rule     { return rule{&expr.Verdict{Kind: expr.VerdictAccept}} }
func drop() rule       { return rule{&expr.Verdict{Kind: expr.VerdictDrop}} }

func jump(chain string) rule { return rule{&expr.Verdict{Kind: expr.VerdictJump, Chain: chain}} }
