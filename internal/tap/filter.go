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

// tableName is the nftables table that is imprint's own, in the netdev family.
const tableName = "imprint"

// maxSources is how many IPv6 addresses a guest may speak from within sourcesAge.
const (
	maxSources = 8
	sourcesAge = time.Hour
)

// sourcesID names the set of sources within one transaction.
const sourcesID = 1

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

// reason is why a packet was dropped; it ends the name of a counter.
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

// filter is the table. Each method is one transaction: it happens whole or not at all.
type filter struct {
	mu    sync.Mutex // one transaction at a time
	table *nftables.Table
}

// openFilter makes the table, or finds the one that an earlier process left. It
// fails with kind [imprint.Conflict] if the table of that name is somebody else's.
func openFilter() (*filter, error) {
	f := &filter{table: &nftables.Table{Name: tableName, Family: nftables.TableFamilyNetdev}}
	conn, err := nftables.New()
	if err != nil {
		return nil, filterFault("open", tableName, err)
	}
	conn.AddTable(f.table)
	if err := conn.Flush(); err != nil {
		return nil, filterFault("make the nftables table", tableName, err)
	}
	chains, err := f.chains()
	if err != nil {
		return nil, err
	}
	for _, c := range chains {
		if _, ours := interfaceOf(c.Name); !ours {
			return nil, imprint.Errorf(imprint.Conflict, "use the nftables table", tableName, "its chain %q is not imprint's", c.Name).
				WithHint("remove or rename that table: nft delete table netdev %s", tableName)
		}
	}
	return f, nil
}

// interfaces returns the names of those that have rules.
func (f *filter) interfaces() ([]string, error) {
	chains, err := f.chains()
	if err != nil {
		return nil, err
	}
	var names []string
	for _, c := range chains {
		if name, ours := interfaceOf(c.Name); ours && c.Name == inboundName(name) {
			names = append(names, name)
		}
	}
	return names, nil
}

func (f *filter) chains() ([]*nftables.Chain, error) {
	conn, err := nftables.New()
	if err != nil {
		return nil, filterFault("read the nftables table", tableName, err)
	}
	all, err := conn.ListChainsOfTableFamily(nftables.TableFamilyNetdev)
	if err != nil {
		return nil, filterFault("read the nftables table", tableName, err)
	}
	var own []*nftables.Chain
	for _, c := range all {
		if c.Table.Name == tableName {
			own = append(own, c)
		}
	}
	return own, nil
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
	conn.AddTable(f.table)
	for _, why := range reasons() {
		conn.AddObj(f.counter(nic.Name, why))
	}
	if err := conn.AddSet(f.sources(nic.Name), nil); err != nil {
		return filterFault("filter", nic.Name, err)
	}
	in, out := f.pair(nic.Name)
	for _, c := range []struct {
		chain *nftables.Chain
		rules []rule
	}{{in, inbound(nic)}, {out, outbound(nic)}} {
		conn.AddChain(c.chain) // an existing one is left as it is
		conn.FlushChain(c.chain)
		for _, r := range c.rules {
			conn.AddRule(&nftables.Rule{Table: f.table, Chain: c.chain, Exprs: r})
		}
	}
	if err := conn.Flush(); err != nil {
		return filterFault("filter", nic.Name, err)
	}
	return nil
}

// remove takes away the rules and the counts of the interface name.
func (f *filter) remove(name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	chains, err := f.chains() // with their interface the kernel may have removed them already
	if err != nil {
		return err
	}
	conn, err := nftables.New()
	if err != nil {
		return filterFault("stop filtering", name, err)
	}
	found := false
	for _, c := range chains {
		if of, _ := interfaceOf(c.Name); of == name {
			conn.FlushChain(c)
			conn.DelChain(c)
			found = true
		}
	}
	known, err := f.has(name)
	if err != nil {
		return err
	}
	if known {
		conn.DelSet(f.sources(name))
		for _, why := range reasons() {
			conn.DeleteObject(f.counter(name, why))
		}
	}
	if !found && !known {
		return nil
	}
	if err := conn.Flush(); err != nil {
		return filterFault("stop filtering", name, err)
	}
	return nil
}

// has reports whether the counters of the interface name exist, and with them its set.
func (f *filter) has(name string) (bool, error) {
	_, err := f.drops(name)
	if imprint.KindOf(err) == imprint.NotFound {
		return false, nil
	}
	return err == nil, err
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
		o, err := conn.GetObject(f.counter(name, why))
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

// close removes the table with all that is in it.
func (f *filter) close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	conn, err := nftables.New()
	if err != nil {
		return filterFault("remove the nftables table", tableName, err)
	}
	conn.DelTable(f.table)
	if err := conn.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
		return filterFault("remove the nftables table", tableName, err)
	}
	return nil
}

// pair returns the two chains of the interface name, at the two ends of its way
// into the host. They drop what no rule accepts.
func (f *filter) pair(name string) (in, out *nftables.Chain) {
	policy := nftables.ChainPolicyDrop
	chain := func(chainName string, hook *nftables.ChainHook) *nftables.Chain {
		return &nftables.Chain{
			Name: chainName, Table: f.table, Type: nftables.ChainTypeFilter,
			Hooknum: hook, Priority: nftables.ChainPriorityFilter, Device: name, Policy: &policy,
		}
	}
	return chain(inboundName(name), nftables.ChainHookIngress), chain(outboundName(name), nftables.ChainHookEgress)
}

func (f *filter) counter(name string, why reason) *nftables.NamedObj {
	return &nftables.NamedObj{Table: f.table, Name: counterName(name, why), Type: nftables.ObjTypeCounter, Obj: &expr.Counter{}}
}

// sources is the set of the IPv6 addresses that the guest speaks from.
func (f *filter) sources(name string) *nftables.Set {
	return &nftables.Set{
		Table: f.table, Name: sourcesName(name), ID: sourcesID, KeyType: nftables.TypeIP6Addr,
		Dynamic: true, HasTimeout: true, Timeout: sourcesAge, Size: maxSources,
	}
}

// The names within the table begin with the interface's. The last dot ends it:
// an interface's own name may have some.
const (
	inboundEnd  = ".in"
	outboundEnd = ".out"
	sourcesEnd  = ".ipv6"
)

func inboundName(name string) string             { return name + inboundEnd }
func outboundName(name string) string            { return name + outboundEnd }
func sourcesName(name string) string             { return name + sourcesEnd }
func counterName(name string, why reason) string { return name + "." + string(why) }

func interfaceOf(chain string) (name string, ours bool) {
	if name, ours = strings.CutSuffix(chain, inboundEnd); ours {
		return name, true
	}
	return strings.CutSuffix(chain, outboundEnd)
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
