// Package imprint holds the nouns of imprint: what a machine is, what may be
// told to it, over which channel, and how it becomes the holder of a
// certificate. It has no I/O and imports the standard library only, so that
// every other package, and the agent in the guest, can share its words.
//
// # The model
//
// An [Instance] is one machine, virtual or physical: a [Spec] that the operator
// declares and an [Enrolment] that imprint observes. A [Tenant] owns instances
// and names. A [Generation] counts the lives of an instance: a reinstall starts
// the next one, and every credential belongs to exactly one generation.
//
// A [Param] is a named value with a [Visibility]. A [ChannelKind] is a way
// between host and guest, described by its properties ([Channel]) rather than
// by code. The audience rule joins the two and is the heart of the system:
//
//	a value travels over a channel only if everyone who can read that channel
//	belongs to the audience that the value's visibility allows
//
// It is one comparison, [MayTravel], and no other place decides it.
//
// A [Payload] is the first document that a machine reads: who it is, what time
// it is at least, whom to trust and where to ask. It never contains a private
// key. The machine makes its own key and sends a certificate request; the
// certificate is built from the reservation plus that request's public key.
//
// # The disk
//
// An [Image] is what a machine's disk is written from; a personalization
// [Package] and an [OS] definition add what is the machine's own. An
// [Installation] says how far that is. An [InstallSetup] is what the machine has
// for one installation only, and a [Medium] what was given out for it to read.
//
// # The life of a claim
//
//	reserved → delivered → claimed → issued → confirmed → closed
//	side exits: expired, contested, revoked
//
// Every arrow is one compare-and-swap on the instance's record. The claim binds
// to the first public key seen; the same key may repeat its request until it
// confirms and gets the same certificate, and a different key makes the
// enrolment contested. See [Enrolment] and package internal/enrol.
package imprint
