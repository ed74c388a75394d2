package tap

import (
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"imprint"
)

// tablePrefix begins the name of the nftables table, in the netdev family, of an
// interface; the interface's own name ends it. Each has a table of its own because
// the kernel looks at a whole table again whenever a rule is added to it.
const tablePrefix = "imprint."

// maxSources is how many IPv6 addresses a guest may speak from within sourcesAge.
const (
	maxSources = 8
	sourcesAge = time.Hour
)

// sourcesID names the set of sources within one transaction.
const sourcesID = 1

// The names within an interface's table; a counter is called as its reason.
const (
	inboundName  = "in"
	outboundName = "out"
	sourcesName  = "ipv6"
)

// Drops counts the packets that the filter dropped at one interface since its
// rules were first made, by reason. The counts outlive a restart.
type Drops struct {
	MAC         uint64 // from the guest, with a MAC that is not its own
	ARP         uint64 // ARP that claims another address or asks for one that is not the host's
	Source      uint64 // IP with a source that is not the guest's
	Destination uint64 // IP to another address than the host's
	Port        uint64 // IP to another port or protocol than metadata and DHCP
	Other       uint64 // neither ARP nor IP
	Outbound    uint64 // towards the guest: forwarded, or sent by another program of the host
}

// Forged is how many packets pretended to come from somebody else.
func (d Drops) Forged() uint64 { return d.MAC + d.ARP + d.Source }

// reason is why a packet was dropped, and the name of the counter.
type reason string

const (
	dropMAC         reason = "mac"
	dropARP         reason = "arp"
	dropSource      reason = "source"
	dropDestination reason = "destination"
	dropPort        reason = "port"
	dropOther       reason = "other"
	dropOutbound    reason = "outbound"
)

// of returns where d counts why.
func (d *Drops) of(why reason) *uint64 {
	switch why {
	case dropMAC:
		return &d.MAC
	case dropARP:
		return &d.ARP
	case dropSource:
		return &d.Source
	case dropDestination:
		return &d.Destination
	case dropPort:
		return &d.Port
	case dropOther:
		return &d.Other
	}
	return &d.Outbound
}

func reasons() []reason {
	return []reason{dropMAC, dropARP, dropSource, dropDestination, dropPort, dropOther, dropOutbound}
}

// filter is all tables. Each method that changes one is a transaction: it happens
// whole or not at all.
type filter struct {
	mu sync.Mutex // one transaction at a time
}

// openFilter finds out whether this kernel filters and this process may say how.
// What an earlier process left stays in force. It fails with kind
// [imprint.Conflict] if a table that is called like one of imprint's is somebody
// else's.
func openFilter() (*filter, error) {
	f := &filter{}
	conn, err := nftables.New()
	if err != nil {
		return nil, filterFault("open", "nftables", err)
	}
	probe := table("probe of this kernel") // no interface is called so
	conn.AddTable(probe)
	conn.DelTable(probe)
	if err := conn.Flush(); err != nil {
		return nil, filterFault("make a table of", "nftables", err)
	}
	chains, err := conn.ListChainsOfTableFamily(nftables.TableFamilyNetdev)
	if err != nil {
		return nil, filterFault("read", "nftables", err)
	}
	for _, c := range chains {
		if strings.HasPrefix(c.Table.Name, tablePrefix) && c.Name != inboundName && c.Name != outboundName {
			return nil, imprint.Errorf(imprint.Conflict, "use the nftables table", c.Table.Name, "its chain %q is not imprint's", c.Name).
				WithHint("remove or rename that table: nft delete table netdev %s", c.Table.Name)
		}
	}
	return f, nil
}

// table is that of the interface name.
func table(name string) *nftables.Table {
	return &nftables.Table{Name: tablePrefix + name, Family: nftables.TableFamilyNetdev}
}

// interfaces returns the names of those that have rules, or had some until they
// went.
func (f *filter) interfaces() ([]string, error) {
	conn, err := nftables.New()
	if err != nil {
		return nil, filterFault("read", "nftables", err)
	}
	tables, err := conn.ListTablesOfFamily(nftables.TableFamilyNetdev)
	if err != nil {
		return nil, filterFault("read", "nftables", err)
	}
	var names []string
	for _, t := range tables {
		if name, ours := strings.CutPrefix(t.Name, tablePrefix); ours {
			names = append(names, name)
		}
	}
	return names, nil
}

// apply puts the rules of nic in force, in the place of those that were there.
// The interface has to exist.
func (f *filter) apply(nic NIC) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	conn, err := nftables.New()
	if err != nil {
		return filterFault("filter", nic.Name, err)
	}
	t := table(nic.Name)
	conn.AddTable(t)
	for _, why := range reasons() {
		conn.AddObj(counter(t, why))
	}
	if err := conn.AddSet(sources(t), nil); err != nil {
		return filterFault("filter", nic.Name, err)
	}
	in, out := pair(t, nic.Name)
	for _, c := range []struct {
		chain *nftables.Chain
		rules []rule
	}{{in, inbound(nic)}, {out, outbound(nic)}} {
		conn.AddChain(c.chain) // an existing one is left as it is
		conn.FlushChain(c.chain)
		for _, r := range c.rules {
			conn.AddRule(&nftables.Rule{Table: t, Chain: c.chain, Exprs: r})
		}
	}
	if err := conn.Flush(); err != nil {
		return filterFault("filter", nic.Name, err)
	}
	return nil
}

// remove takes away the rules and the counts of the interface name, if there are any.
func (f *filter) remove(name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	conn, err := nftables.New()
	if err != nil {
		return filterFault("stop filtering", name, err)
	}
	conn.DelTable(table(name))
	if err := conn.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
		return filterFault("stop filtering", name, err)
	}
	return nil
}

// drops reads the counters of the interface name.
func (f *filter) drops(name string) (Drops, error) {
	conn, err := nftables.New(nftables.AsLasting())
	if err != nil {
		return Drops{}, filterFault("count what was dropped at", name, err)
	}
	defer conn.CloseLasting()
	var d Drops
	for _, why := range reasons() {
		o, err := conn.GetObject(counter(table(name), why))
		if err != nil || o == nil {
			// The library flattens the kernel's error into text.
			if err == nil || strings.Contains(err.Error(), unix.ENOENT.Error()) {
				return Drops{}, imprint.Errorf(imprint.NotFound, "count what was dropped at", name, "no rules of imprint's are there")
			}
			return Drops{}, filterFault("count what was dropped at", name, err)
		}
		if named, ok := o.(*nftables.NamedObj); ok {
			if c, ok := named.Obj.(*expr.Counter); ok {
				*d.of(why) = c.Packets
			}
		}
	}
	return d, nil
}

// pair returns the two chains of the interface name, at the two ends of its way
// into the host. They drop what no rule accepts.
func pair(t *nftables.Table, name string) (in, out *nftables.Chain) {
	policy := nftables.ChainPolicyDrop
	chain := func(chainName string, hook *nftables.ChainHook) *nftables.Chain {
		return &nftables.Chain{
			Name: chainName, Table: t, Type: nftables.ChainTypeFilter,
			Hooknum: hook, Priority: nftables.ChainPriorityFilter, Device: name, Policy: &policy,
		}
	}
	return chain(inboundName, nftables.ChainHookIngress), chain(outboundName, nftables.ChainHookEgress)
}

func counter(t *nftables.Table, why reason) *nftables.NamedObj {
	return &nftables.NamedObj{Table: t, Name: string(why), Type: nftables.ObjTypeCounter, Obj: &expr.Counter{}}
}

// sources is the set of the IPv6 addresses that the guest speaks from.
func sources(t *nftables.Table) *nftables.Set {
	return &nftables.Set{
		Table: t, Name: sourcesName, ID: sourcesID, KeyType: nftables.TypeIP6Addr,
		Dynamic: true, HasTimeout: true, Timeout: sourcesAge, Size: maxSources,
	}
}

func filterFault(op, operand string, err error) error {
	switch {
	case errors.Is(err, unix.EPERM):
		return imprint.Errorf(imprint.Denied, op, operand, "%w", err).
			WithHint("give imprint CAP_NET_ADMIN in this network namespace")
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EPROTONOSUPPORT), errors.Is(err, unix.EAFNOSUPPORT):
		return imprint.Errorf(imprint.Unavailable, op, operand, "this kernel cannot filter what goes in and out of an interface: %w", err).
			WithHint("imprint needs nftables with the netdev family and its egress hook: Linux 5.16 with CONFIG_NETFILTER_EGRESS")
	}
	return imprint.Errorf(imprint.Internal, op, operand, "%w", err)
}
