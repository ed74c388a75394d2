// Package dhcp answers the one guest behind one point-to-point interface
// (RFC 2131). It knows what the guest gets before the guest asks, so it has no
// pool and remembers nothing: every answer follows from the [Lease] and the
// request.
//
// The guest gets its address and a route to the metadata service, and nothing
// that changes how it reaches anything else: no router, and no name servers
// unless the lease has some. The mask is /32, so that no other address seems to
// be on the link, except for Windows, of whose DHCP client that is not known to
// work: it gets the /16 of RFC 3927. The route is there in both forms, option 121 (RFC 3442)
// and, for who asks, option 249 (Microsoft); its router is 0.0.0.0, which says that the
// metadata address is on the link.
//
// What a guest sends is checked before anything is made of it, and what is wrong
// with it is ignored and counted by [Reason].
package dhcp
