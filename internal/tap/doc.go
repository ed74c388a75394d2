// Package tap is the link-local network of one hypervisor: a point-to-point
// interface for every guest, and the packet filter that keeps it point-to-point.
//
// Every interface carries the metadata address, 169.254.169.254 and
// fe80::a9fe:a9fe, and a host route to the one IPv4 address that belongs to the
// guest behind it. A socket of a [Link] is bound to the interface by the kernel
// (SO_BINDTODEVICE), so which interface a connection came in by is the identity,
// and nothing that the guest writes into a packet is.
//
// From its interface a guest reaches the metadata port and the DHCP server, and
// nothing else: no other port or address of the host, no neighbour, nothing
// behind the host; and nothing but those answers reaches it. The rules are in the
// netdev family of nftables, at the interface's ingress and egress, because that
// is the only place that sees MAC addresses, ARP, IPv4 and IPv6 before the host
// does, and also what a bridge or another interface sends. They match literal values, one
// table an interface, so that a packet, and another interface, cost the same with
// one guest as with a thousand. What is dropped is counted by reason: see [Drops]. What is let
// through still meets the operator's own rules, which have to accept it.
//
//	n, err := tap.Open(tap.Options{Logger: log})
//	a, err := n.Attach(tap.NIC{Name: tap.NameOf(id), MAC: lease.MAC, IPv4: lease.IPv4}, serve)
//	err = a.Detach()
//	err = n.Close() // or n.Leave(), before a restart
//
// serve runs once for each life of the interface: if the interface vanishes, its
// context ends; if it returns, with whatever index, serve is called again.
//
// Everything here needs CAP_NET_ADMIN, a port below 1024 needs
// CAP_NET_BIND_SERVICE, and CAP_NET_RAW is for binding to an interface before
// Linux 5.7; root is not needed. One process at a time may have a Network open in
// one network namespace.
package tap
