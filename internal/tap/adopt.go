package tap

import (
	"context"
	"errors"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"

	"imprint"
)

// requestPrefix begins the alias of an interface that was asked for; what
// follows is the guest's label and, after a space, its MAC if that is not the
// one on record. The alias is the interface's own, so it goes with the interface,
// and only who has CAP_NET_ADMIN on the host can write it.
const requestPrefix = alias + ":"

// Limits of a request.
const (
	maxAlias    = 255 // bytes: IFALIASZ less its NUL, linux/if.h
	requestPoll = 10 * time.Millisecond
)

// Request asks for the interface name, which somebody else made, to become that
// of the guest whom label names: see [NIC.Labels]. With a mac the guest's is that
// one from now on; the zero MAC is the one on record. It returns when the
// interface is served, and so is filtered: whoever calls it before the guest
// starts leaves the guest no moment without rules.
//
// It fails with kind [imprint.NotFound] without such an interface, with kind
// [imprint.Conflict] if the interface is imprint's own or served already without
// having been asked for, or if somebody else's alias is on it, and with kind [imprint.Unavailable] if it is not served when ctx
// ends; the request stays.
func Request(ctx context.Context, name, label string, mac MAC) error {
	text := requestPrefix + label
	if mac != (MAC{}) {
		text += " " + mac.String()
	}
	if label == "" || strings.ContainsAny(label, " \x00") || len(text) > maxAlias {
		return imprint.Errorf(imprint.Invalid, "ask for", name, "%q names no instance", label)
	}
	if !ValidName(name) {
		return imprint.Errorf(imprint.Invalid, "ask for", name, "not the name of an interface")
	}
	l, err := netlink.LinkByName(name)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return imprint.Errorf(imprint.NotFound, "ask for", name, "there is no such interface in this network namespace")
	}
	if err != nil {
		return linkFault("look for", name, err)
	}
	old := l.Attrs().Alias
	was, _, asked := readRequest(old)
	switch {
	case old == alias:
		return imprint.Errorf(imprint.Conflict, "ask for", name, "it is a tap that imprint made")
	case asked && was != label:
		return imprint.Errorf(imprint.Conflict, "ask for", name, "it was asked for by %s already", was).
			WithHint("if that is over: ip link set %s alias ''", name)
	case !asked && old != "":
		return imprint.Errorf(imprint.Conflict, "ask for", name, "it has the alias %q, and a request is an alias", old).
			WithHint("take that away first: ip link set %s alias ''", name)
	case !asked && hasMetadataAddress(l):
		return imprint.Errorf(imprint.Conflict, "ask for", name, "it is served already, to the guest whose MAC or name it has").
			WithHint("imprint describe says whose interface it is; change adopt in the configuration if that is wrong")
	}
	if err := netlink.LinkSetAlias(l, text); err != nil {
		return linkFault("mark", name, err)
	}
	for !hasMetadataAddress(l) {
		select {
		case <-time.After(requestPoll):
		case <-ctx.Done():
			return imprint.Errorf(imprint.Unavailable, "ask for", name, "it is not served yet as the interface of %s", label).
				WithHint("see whether it is up, whether adopt in the configuration fits it, and what is on the timeline: imprint describe %s", label)
		}
	}
	return nil
}

// hasMetadataAddress reports whether l was configured, which comes after its rules.
func hasMetadataAddress(l netlink.Link) bool {
	addrs, err := netlink.AddrList(l, netlink.FAMILY_V4)
	return err == nil && slices.ContainsFunc(addrs, func(a netlink.Addr) bool { return a.IP.Equal(MetadataIPv4.AsSlice()) })
}

// readRequest reads an alias. A MAC that is none makes it a request for nobody.
func readRequest(text string) (label string, mac MAC, asked bool) {
	text, asked = strings.CutPrefix(text, requestPrefix)
	label, rest, more := strings.Cut(text, " ")
	if more {
		var err error
		if mac, err = ParseMAC(rest); err != nil {
			label = ""
		}
	}
	return label, mac, asked
}

// guestAt returns the MAC of n's guest if l, whose name fits, is its interface:
// because it was asked for as such, or because its MAC is the one that libvirt
// gives the host's end. The latter counts only for kinds of interfaces whose MAC
// no guest can change from within, as it can that of a macvtap, and not for a tap
// that a user or a group may open by name: whoever has a tap open may set its MAC,
// without a capability (SIOCSIFHWADDR in the kernel's drivers/net/tun.c).
func (n NIC) guestAt(l netlink.Link) (mac MAC, is bool) {
	attrs := l.Attrs()
	if ok, _ := path.Match(n.Name, attrs.Name); !ok || !ValidName(attrs.Name) || attrs.Alias == alias {
		return mac, false
	}
	if label, mac, asked := readRequest(attrs.Alias); asked {
		if mac == (MAC{}) {
			mac = n.MAC
		}
		return mac, slices.Contains(n.Labels, label)
	}
	switch l := l.(type) {
	case *netlink.Tuntap:
		if l.Owner != 0 || l.Group != 0 {
			return mac, false
		}
	case *netlink.Veth:
	default:
		return mac, false
	}
	peer := n.MAC
	peer[0] = 0xfe
	return n.MAC, string(attrs.HardwareAddr) == string(peer[:])
}

// find returns the interface of nic, and nic as it is there: with its name, and
// the MAC that was asked for. The link is nil if it is not there. It fails with
// kind [imprint.Conflict] if it can be no guest's, or if there are several.
func find(nic NIC) (netlink.Link, NIC, error) {
	if !nic.pattern() {
		l, err := netlink.LinkByName(nic.Name)
		if errors.As(err, new(netlink.LinkNotFoundError)) {
			return nil, nic, nil
		}
		if err != nil {
			return nil, nic, linkFault("look for", nic.Name, err)
		}
		if nic.Adopt && l.Attrs().Alias == alias {
			return nil, nic, imprint.Errorf(imprint.Conflict, "use", nic.Name, "it is a tap that imprint made, and somebody else is to make it").
				WithHint("delete it: ip link delete %s", nic.Name)
		}
		return l, nic, checkAdoptable(l, nic)
	}
	all, err := netlink.LinkList()
	if err != nil {
		return nil, nic, linkFault("look for", nic.Name, err)
	}
	var found netlink.Link
	at := nic
	for _, l := range all {
		mac, is := nic.guestAt(l)
		switch {
		case !is:
		case found != nil:
			return nil, nic, imprint.Errorf(imprint.Conflict, "use", nic.Name, "%s and %s both are the interface of the guest %s, so neither is served", found.Attrs().Name, l.Attrs().Name, nic.MAC).
				WithHint("no two machines may have that MAC, or have been asked for as the same instance")
		default:
			found, at.Name, at.MAC = l, l.Attrs().Name, mac
		}
	}
	if found == nil {
		return nil, nic, nil
	}
	return found, at, checkAdoptable(found, at)
}

// enter makes at.Name the interface of a. It fails with kind [imprint.Conflict]
// if another guest has a claim on it as well, who then is served there no more,
// or if its MAC is another's. The rules of stale have to go: they were made for
// an interface of that name, or of a's, that is gone.
func (n *Network) enter(a *Attachment, at NIC) (stale []string, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	a.setClaim(at.Name)
	for other := range n.attached {
		if other == a {
			continue
		}
		if other.claim() == at.Name {
			other.poke() // to find out, and end
			return nil, imprint.Errorf(imprint.Conflict, "use", at.Name, "it is the interface of the guests %s and %s, so neither is served", a.nic.MAC, other.nic.MAC).
				WithHint("let each guest have an interface of its own: see adopt in the configuration, and what each was asked for")
		}
		asked := other.linkMAC() == at.MAC
		if asked && at.MAC == a.nic.MAC { // it is on a's record
			other.poke()
			continue
		}
		if asked || other.nic.MAC == at.MAC {
			return nil, imprint.Errorf(imprint.Conflict, "use", at.Name, "its MAC %s belongs to the guest at %s", at.MAC, other.nic.Name).
				WithHint("give each guest a MAC of its own")
		}
	}
	for other := range n.attached {
		if other != a && other.loses(at.Name) {
			stale = append(stale, at.Name)
		}
	}
	if last := a.lastName(); last != "" && last != at.Name {
		stale = append(stale, last)
	}
	return stale, nil
}

// contested reports whether another guest has a claim on a's interface.
func (n *Network) contested(a *Attachment) bool {
	name := a.claim()
	return name != "" && n.another(a, func(other *Attachment) bool { return other.claim() == name })
}

// another reports whether is says so of an attachment other than a.
func (n *Network) another(a *Attachment, is func(*Attachment) bool) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	for other := range n.attached {
		if other != a && is(other) {
			return true
		}
	}
	return false
}

func (a *Attachment) setClaim(name string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.claimed = name
}

// claim returns the interface that is a's by its own name, or was found to be,
// served or not.
func (a *Attachment) claim() string {
	if !a.nic.pattern() {
		return a.nic.Name
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.claimed
}

// linkMAC returns the MAC of the guest that is served, as it may have been asked for.
func (a *Attachment) linkMAC() MAC {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.link == nil {
		return MAC{}
	}
	return a.link.NIC.MAC
}

// loses makes a forget that name was its interface's, once.
func (a *Attachment) loses(name string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.last != name {
		return false
	}
	a.last = ""
	return true
}

func (a *Attachment) lastName() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.last
}

// poke makes a look at its interface.
func (a *Attachment) poke() {
	select {
	case a.wake <- struct{}{}:
	default: // it is going to look anyway
	}
}

// tell replaces the reason that was not taken yet, if any.
func (a *Attachment) tell(err error) {
	for {
		select {
		case a.trouble <- err:
			return
		default:
		}
		select {
		case <-a.trouble:
		default:
		}
	}
}
