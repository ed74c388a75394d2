// Package hostapi is what a hypervisor that runs "imprint host" and its control
// plane say to each other, both ends. It goes over the check-in endpoint, with
// the certificate that the hypervisor enrolled for as any machine does, in the
// tenant [Tenant].
//
//	GET  watch?from=REVISION   a stream of lines: the instances placed on this host, what is common
//	                           to their tenants, calls, and empty lines as heartbeats
//	POST enrol                 a certificate request that came up an instance's channel
//	POST report                what an instance did
//	GET  params/{id}/{name}    a private value of an instance
//	POST answers/{call}        the answer to a call
//
// below [Prefix]. For which host a certificate speaks is decided in [HostOf] and
// nowhere else; it is the witness of what the host sends, whatever the body says.
// A host sees the instances that are placed on it and no others.
//
// The connections are the host's. What the control plane wants of a host, such
// as to take a secret value into its memory, goes down the stream as a [Call].
package hostapi
