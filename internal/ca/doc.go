// Package ca turns a decision that a certificate may be signed
// ([imprint.Grant]) into the certificate, and keeps the log of all that was
// signed. It knows no network and no store: material and keys are handed in,
// results are handed back.
//
// # One authority per tenant
//
// A root CA signs nothing but issuing CAs, so that its key can be taken
// offline: an [Authority] runs on the issuing key alone, and [Reissue] needs the
// root key back only to change what the issuing CA may name. The issuing CA has
// path length 0 and name constraints: the tenant's DNS domains and networks, the
// host names and addresses of the check-in endpoint, and the trust domain for
// URIs. A machine never gets a certificate for an endpoint's name,
// although the constraint permits it: it could pose as the server.
//
// # What is in a certificate
//
// A leaf is built from the grant alone; nothing is read from a clock, a random
// source or the machine's request. Signatures are deterministic (RFC 6979), so
// the same grant gives the same bytes on every server that holds the same
// material. A signer that is not deterministic is refused by [Open].
//
// Beside its DNS names and addresses a machine's leaf carries one URI,
//
//	spiffe://<trust domain>/tenant/<tenant>/instance/<id>/generation/<n>
//
// and one extension of imprint's own, not critical, see [Enrolment]:
//
//	2.25.1768779890.1
//
//	Enrolment ::= SEQUENCE {
//	    version     INTEGER (1),
//	    tier        INTEGER (0..3),
//	    generation  INTEGER (1..4294967295),
//	    channel     UTF8String (SIZE (1..32)) }
//
// 2.25 is the arc in which a UUID names its own subtree without registration
// (ITU-T X.667). 1768779890 is 0x696d7072, "impr"; as a UUID it was chosen, not
// generated, so nothing but its improbability keeps others from choosing it too.
//
// # The issuance log
//
// Every leaf has an entry in a transparency log ([Log], C2SP tlog-tiles on disk).
// The entry is queued in the transaction that records the certificate, before
// anything leaves, and the log takes in what is queued a few times a second, so
// that no enrolment waits for the dozen writes to the disk that a tree takes.
// [VerifyLog] checks a copy of the log offline.
package ca
