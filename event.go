package imprint

import "time"

// MaxEvents is how many events of an instance's timeline are kept; the oldest
// go first. The complete record of issuance is the log beside the CA.
const MaxEvents = 256

// EventKind names what happened.
type EventKind string

// The events of a timeline.
const (
	EventReserved  EventKind = "reserved"
	EventDelivered EventKind = "delivered"
	EventClaimed   EventKind = "claimed"
	EventWaiting   EventKind = "waiting" // for approval
	EventApproved  EventKind = "approved"
	EventIssued    EventKind = "issued"
	EventConfirmed EventKind = "confirmed"
	EventRead      EventKind = "read"   // a private or secret value was read
	EventServed    EventKind = "served" // something that is not private was read
	EventHome      EventKind = "home"   // stock software says that the machine has booted
	EventNIC       EventKind = "nic"    // the host chose the link-local interface
	EventClosed    EventKind = "closed"
	EventRenewed   EventKind = "renewed"
	EventSSHHost   EventKind = "ssh-host" // a machine asked for a certificate for its SSH host key
	EventRefused   EventKind = "refused"  // a request was turned down
	EventContested EventKind = "contested"
	EventRevoked   EventKind = "revoked"
	EventExpired   EventKind = "expired"
	EventReborn    EventKind = "reborn"
	EventToken     EventKind = "token"    // a one-time token was handed out
	EventMessage   EventKind = "message"  // messages went through a pipe
	EventPassword  EventKind = "password" // the guest posted a password, encrypted to the operator
	EventChanged   EventKind = "changed"  // the operator changed the spec
	EventMedium    EventKind = "medium"   // what a medium holds was given out
	EventTaken     EventKind = "taken"    // a medium was taken away
	EventLeft      EventKind = "left"     // a medium could not be taken away
	EventInstall   EventKind = "install"  // a step of an installation: see [InstallStep]
	EventSetup     EventKind = "setup"    // what the machine has for its next installation was set or cleared
)

// Event is one line of an instance's timeline. It never holds a private value.
type Event struct {
	Instance   InstanceID        `json:"instance"`
	Seq        uint64            `json:"seq"` // from 1, without gaps
	Generation Generation        `json:"generation"`
	At         time.Time         `json:"at"`
	Kind       EventKind         `json:"kind"`
	Channel    ChannelKind       `json:"channel,omitempty"`
	Detail     map[string]string `json:"detail,omitempty"`
}
