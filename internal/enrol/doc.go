// Package enrol decides who gets a certificate. It is the state machine
//
//	reserved → delivered → claimed → issued → confirmed → closed
//	side exits: expired, contested, revoked
//
// as pure functions from an instance and an input to an [imprint.Change], and an
// [Engine] that runs each of them as one compare-and-swap on the instance's
// record. It holds no key: an [Issuer] signs what was decided.
//
// # Why nobody is issued two keys
//
// The claim binds the generation to the first key. A decision to grant a claim
// has the certificate signed at once, and one compare-and-swap stores the claim,
// the certificate and its entry for the issuance log, or none of them. What was
// signed for a claim that lost a race is in no store, in no log and in no reply.
// Whoever repeats a request, on this server or another, finds the claim and gets
// what is stored.
//
// # Why a lost reply costs nothing
//
// The claimed key may repeat its request in every later state. Its signature on
// the request proves that it is the same machine, so it needs no token for that.
//
// A certificate that nobody fetched in time, or that a wrong clock dated, is made
// anew for the same key under another serial number.
//
// # Who else may ask
//
// A different key is judged by what it brings. With evidence that would have
// been enough for a first claim (the host vouches for the channel, or the token is
// right and its time is not over) it makes the enrolment contested, and
// everything is revoked. Without, it is turned down and noted, so that a stranger
// cannot take a machine down. Evidence is weighed before anything that depends
// on the state, so that a stranger learns nothing either, and notes are rationed,
// so that he cannot fill the store or push the story off the timeline.
//
// # SSH host keys
//
// A host vouches for the SSH host key that comes with a request up its channel.
// Over the network the enrolled certificate vouches: a machine that shows it may
// have its SSH host key certified, see [Engine.CertifySSHHost].
package enrol
