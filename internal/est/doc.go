// Package est is the check-in endpoint: an RFC 7030 server (as clarified by
// RFC 8951 and RFC 9908) for machines that reach imprint over the network, and
// a few requests of our own for machines that are enrolled already.
//
//	GET  /.well-known/est[/LABEL]/cacerts          anyone        certificates to trust
//	GET  /.well-known/est[/LABEL]/csrattrs         anyone        what belongs in a request
//	POST /.well-known/est[/LABEL]/simpleenroll     token         first certificate
//	POST /.well-known/est[/LABEL]/simplereenroll   certificate   its renewal
//	GET  /.well-known/imprint/v1/state             certificate   where the enrolment stands
//	POST /.well-known/imprint/v1/confirm           certificate   "I hold key and certificate"
//	POST /.well-known/imprint/v1/ready             certificate   "I have all I need"
//	POST /.well-known/imprint/v1/ssh-certificate   certificate   SSH host key in, its certificate out
//	GET  /.well-known/imprint/v1/params[/NAME]     certificate   parameters
//	GET  /.well-known/imprint/v1/user-data         certificate   the user data
//	GET  /crl/TENANT.crl                           anyone        the revocation list
//
// LABEL is the certificate profile that the reservation names. Whoever has a
// token is an HTTP Basic user: the instance's identifier or name with the
// one-time token as password. Whoever has a certificate shows it in the TLS
// handshake, and the first time it does so confirms the enrolment.
//
// Requests below one path with a certificate of one tenant may be another
// handler's: the API of the hypervisors (see [Config]).
//
// The package decides nothing about enrolments. It reads requests, finds out
// who sends them, asks the interfaces declared here, and writes replies. Each
// tenant has its own TLS context, chosen by server name (see [Tenant]).
package est
