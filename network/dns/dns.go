// Package dns is the resolver of one network: it listens at the gateway, answers for the containers that the asker may know,
// and forwards the rest.
//
// Askers are hostile. A query is at most one question of class IN; what it holds besides is not passed on: a new message is
// made for the forwarder and a new one for the asker. Work is bounded: queries at a time per server and per asker, bytes,
// connections, and time.
package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// Limits of one server.
const (
	maxQueries      = 128 // at a time
	maxPerAsker     = 32  // of those, from one address
	maxConnections  = 64  // over TCP
	maxQuery        = 4096
	maxUDPAnswer    = 1232 // bytes, where the asker offers as much
	idle            = 10 * time.Second
	upstreamTimeout = 2 * time.Second
	total           = 8 * time.Second // for one question
	ttl             = 5               // seconds, of containers' names: they come and go
	minOpen         = 5 * time.Second // an address stays reachable for so long at least
	maxOpen         = time.Hour
)

// Asker is what a Directory knows of a guest. Names are in lower case, without the dot at their end. Functions may be nil.
type Asker struct {
	Lookup    func(name string) (addresses []netip.Addr, known bool)
	Reverse   func(a netip.Addr) (name string, known bool)
	Forward   bool             // other names may be asked of the upstreams
	Upstreams []netip.AddrPort // in place of the server's; nil: the server's
	Allow     func(name string) bool
	// Denied names are not there: neither they nor what is an alias of them, whosever they are.
	Denied func(name string) bool
	// Opened is told of the addresses of a name, and how long they hold, before the guest is.
	Opened func(name string, addresses []netip.Addr, ttl time.Duration)
}

// Directory knows the guests. It must be quick, and safe to call from any goroutine.
type Directory interface {
	// Asker returns who asks from an address; false for nobody, who gets no answer.
	Asker(source netip.Addr) (Asker, bool)
}

// Options of a server.
type Options struct {
	Log        *slog.Logger     // nil: nothing is logged
	Upstreams  []netip.AddrPort // nil: those of ResolvConf, read again when it changes
	ResolvConf string           // empty: /etc/resolv.conf
}

// Resolver answers messages, whatever they came over. A Server has one.
type Resolver struct {
	directory Directory
	host      *hostResolvers
	slots     chan struct{}

	mu     sync.Mutex
	asking map[netip.Addr]int
}

// NewResolver makes a resolver for those that d knows. Its methods may be called from any goroutine.
func NewResolver(d Directory, o Options) *Resolver {
	return &Resolver{directory: d, host: newHostResolvers(o), slots: make(chan struct{}, maxQueries), asking: map[netip.Addr]int{}}
}

// enter takes a place for a query, which leave gives back. It is false when there is none.
func (r *Resolver) enter(source netip.Addr) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.asking[source] >= maxPerAsker {
		return false
	}
	select {
	case r.slots <- struct{}{}:
		r.asking[source]++
		return true
	default:
		return false
	}
}

func (r *Resolver) leave(source netip.Addr) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.asking[source]--; r.asking[source] <= 0 {
		delete(r.asking, source)
	}
	<-r.slots
}

// Answer makes the reply to a raw query from an address; nil when there is none to make, or when as many are being made as may
// be. tcp tells what the query came over, which bounds the reply.
func (r *Resolver) Answer(ctx context.Context, source netip.Addr, raw []byte, tcp bool) []byte {
	if !r.enter(source) {
		return nil
	}
	defer r.leave(source)
	return r.answer(ctx, source, raw, tcp)
}

// answer makes the reply to a raw query; nil when there is none to make.
func (r *Resolver) answer(ctx context.Context, source netip.Addr, raw []byte, tcp bool) []byte {
	asker, known := r.directory.Asker(source)
	if !known || len(raw) > maxQuery {
		return nil
	}
	var query dns.Msg
	if err := query.Unpack(raw); err != nil || query.Response {
		return nil
	}
	reply := r.reply(ctx, asker, &query, tcp)
	size := dns.MaxMsgSize
	if !tcp {
		size = dns.MinMsgSize
		if o := query.IsEdns0(); o != nil {
			size = min(max(int(o.UDPSize()), size), maxUDPAnswer)
		}
	}
	if query.IsEdns0() != nil && reply.IsEdns0() == nil {
		reply.SetEdns0(maxUDPAnswer, false)
	}
	reply.Truncate(size)
	out, err := reply.Pack()
	if err != nil || len(out) > size {
		failed := new(dns.Msg).SetRcode(&query, dns.RcodeServerFailure)
		failed.Extra = nil
		if out, err = failed.Pack(); err != nil || len(out) > size {
			return nil
		}
	}
	return out
}

func (r *Resolver) reply(ctx context.Context, asker Asker, query *dns.Msg, tcp bool) *dns.Msg {
	refuse := func(code int) *dns.Msg {
		m := new(dns.Msg).SetRcode(query, code)
		m.RecursionAvailable = true
		return m
	}
	if query.Opcode != dns.OpcodeQuery {
		return refuse(dns.RcodeNotImplemented)
	}
	if len(query.Question) != 1 || len(query.Answer) > 0 || len(query.Ns) > 0 {
		return refuse(dns.RcodeFormatError)
	}
	q := query.Question[0]
	if q.Qclass != dns.ClassINET || q.Qtype == dns.TypeANY || q.Qtype == dns.TypeAXFR || q.Qtype == dns.TypeIXFR {
		return refuse(dns.RcodeRefused)
	}
	name := plain(q.Name)
	if asker.Denied != nil && asker.Denied(name) {
		return refuse(dns.RcodeNameError)
	}
	if records, ours := local(asker, name, q); ours {
		m := refuse(dns.RcodeSuccess)
		m.Answer = records
		opened(asker, name, m)
		return m
	}
	if !asker.Forward {
		return refuse(dns.RcodeNameError)
	}
	if asker.Allow != nil && !asker.Allow(name) {
		return refuse(dns.RcodeRefused)
	}
	m, err := r.forward(ctx, asker, q, query.CheckingDisabled, dnssec(query), tcp)
	if err != nil {
		return refuse(dns.RcodeServerFailure)
	}
	if asker.Denied != nil && slices.ContainsFunc(aliases(m), asker.Denied) {
		return refuse(dns.RcodeNameError)
	}
	opened(asker, name, m)
	m.Id, m.Question, m.RecursionDesired = query.Id, query.Question, query.RecursionDesired
	return m
}

// plain is a name as Askers have them.
func plain(name string) string { return strings.ToLower(strings.TrimSuffix(name, ".")) }

// aliases are the names that an answer says the one that was asked for stands for.
func aliases(m *dns.Msg) []string {
	var all []string
	for _, rr := range m.Answer {
		switch rr := rr.(type) {
		case *dns.CNAME:
			all = append(all, plain(rr.Target))
		case *dns.DNAME:
			all = append(all, plain(rr.Target))
		}
	}
	return all
}

// opened tells of the addresses that the asker is about to hear of.
func opened(asker Asker, name string, m *dns.Msg) {
	if asker.Opened == nil {
		return
	}
	if addresses, ttl := addressesOf(m); len(addresses) > 0 {
		asker.Opened(name, addresses, ttl)
	}
}

func dnssec(m *dns.Msg) bool {
	o := m.IsEdns0()
	return o != nil && o.Do()
}

// local answers for containers; ours tells whether the name is one of theirs, with or without a record of the type asked for.
func local(asker Asker, name string, q dns.Question) (records []dns.RR, ours bool) {
	header := dns.RR_Header{Name: q.Name, Rrtype: q.Qtype, Class: dns.ClassINET, Ttl: ttl}
	if a, ok := reverse(name); ok && asker.Reverse != nil {
		found, known := asker.Reverse(a)
		if known && q.Qtype == dns.TypePTR {
			records = append(records, &dns.PTR{Hdr: header, Ptr: dns.Fqdn(found)})
		}
		return records, known
	}
	if asker.Lookup == nil {
		return nil, false
	}
	addresses, known := asker.Lookup(name)
	for _, a := range addresses {
		switch {
		case a.Is4() && q.Qtype == dns.TypeA:
			records = append(records, &dns.A{Hdr: header, A: a.AsSlice()})
		case a.Is6() && q.Qtype == dns.TypeAAAA:
			records = append(records, &dns.AAAA{Hdr: header, AAAA: a.AsSlice()})
		}
	}
	rand.Shuffle(len(records), func(i, j int) { records[i], records[j] = records[j], records[i] })
	return records, known
}

// reverse reads the address in a name below in-addr.arpa or ip6.arpa.
func reverse(name string) (netip.Addr, bool) {
	if s, ok := strings.CutSuffix(name, ".in-addr.arpa"); ok {
		parts := strings.Split(s, ".")
		if len(parts) != 4 {
			return netip.Addr{}, false
		}
		a, err := netip.ParseAddr(parts[3] + "." + parts[2] + "." + parts[1] + "." + parts[0])
		return a, err == nil
	}
	s, ok := strings.CutSuffix(name, ".ip6.arpa")
	if !ok || len(s) != 63 {
		return netip.Addr{}, false
	}
	var b strings.Builder
	for i := 62; i >= 0; i -= 2 {
		b.WriteByte(s[i])
		if n := 31 - i/2; n%4 == 3 && i > 0 {
			b.WriteByte(':')
		}
		if i > 0 && s[i-1] != '.' {
			return netip.Addr{}, false
		}
	}
	a, err := netip.ParseAddr(b.String())
	return a, err == nil
}

// addressesOf are the addresses in a message's answers, and how long they hold.
func addressesOf(m *dns.Msg) ([]netip.Addr, time.Duration) {
	var all []netip.Addr
	hold := maxOpen
	for _, rr := range m.Answer {
		var ip []byte
		switch rr := rr.(type) {
		case *dns.A:
			ip = rr.A.To4()
		case *dns.AAAA:
			ip = rr.AAAA
		default:
			continue
		}
		if a, ok := netip.AddrFromSlice(ip); ok {
			all = append(all, a)
			hold = min(hold, time.Duration(rr.Header().Ttl)*time.Second)
		}
	}
	return all, max(hold, minOpen)
}

var errNoUpstream = errors.New("no resolver to forward to")

// forward asks the upstreams one after the other. Only what a resolver should say is taken from the answer.
func (r *Resolver) forward(ctx context.Context, asker Asker, q dns.Question, cd, do, tcp bool) (*dns.Msg, error) {
	upstreams := asker.Upstreams
	if upstreams == nil {
		upstreams = r.host.get()
	}
	ctx, cancel := context.WithTimeout(ctx, total)
	defer cancel()
	err := errNoUpstream
	for _, u := range upstreams {
		m := new(dns.Msg).SetQuestion(q.Name, q.Qtype)
		m.CheckingDisabled = cd
		m.SetEdns0(maxUDPAnswer, do)
		c := dns.Client{Net: "udp", Timeout: upstreamTimeout, UDPSize: maxQuery}
		if tcp {
			c.Net = "tcp"
		}
		var in *dns.Msg
		if in, _, err = c.ExchangeContext(ctx, m, u.String()); err != nil {
			continue
		}
		if len(in.Question) != 1 || in.Question[0].Qtype != q.Qtype || !strings.EqualFold(in.Question[0].Name, q.Name) || !in.Response {
			err = fmt.Errorf("%s answered another question", u)
			continue
		}
		if in.Rcode == dns.RcodeServerFailure || in.Rcode == dns.RcodeRefused {
			err = fmt.Errorf("%s: %s", u, dns.RcodeToString[in.Rcode])
			continue
		}
		out := new(dns.Msg)
		out.Response, out.RecursionAvailable, out.Rcode = true, true, in.Rcode&0xf
		out.AuthenticatedData, out.CheckingDisabled, out.Truncated = in.AuthenticatedData, in.CheckingDisabled, in.Truncated
		out.Answer, out.Ns = in.Answer, in.Ns
		return out, nil
	}
	return nil, err
}
