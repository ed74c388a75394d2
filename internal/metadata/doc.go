// Package metadata serves what a guest may read over HTTP on its link-local
// network: 169.254.169.254 and fe80::a9fe:a9fe, in every dialect that stock
// software speaks, and imprint's own.
//
// A [Server] belongs to one listener and so to one guest. The listener is the
// identity: nothing that a guest sends, neither an address nor a header, says who
// it is. (Behind Neutron's proxy, which has one listener for all, [Proxy] finds
// out from a signed header and then hands over to the guest's own Server.)
//
// What is served was rendered before, when the instance changed: a [Snapshot]
// holds the ready bytes of all dialects, once for each audience, so that a
// request is a look-up and a value that its reader may not have is not even in
// the tree that is looked at. [imprint.MayTravel] alone decides what is in which.
//
// What a guest says (a password, a message, a certificate request) goes to the
// small interfaces below. Whom they belong to decides; this package only sees to
// it that what needs the guest's root came from a source port that only root has.
package metadata

import (
	"context"
	"net/url"
	"time"

	"imprint"
)

// Limits on one guest. Together they bound what its processes can make the host
// keep in memory.
const (
	MaxHeader          = 16 << 10 // bytes of a request's first line and header
	MaxConnections     = 64       // open at a time from source ports that any process may use
	MaxRootConnections = 16       // open at a time besides, from the guest's root
	MaxPassword        = 4 << 10  // bytes; RSA-8192 has 1368 in base64, and Nova stops at 1020
	MaxPhoneHome       = 64 << 10 // bytes of a phone-home form
	MaxPhoneHomeFields = 32       // fields of it
	MaxNativeValue     = 64 << 10 // bytes of a value put below /imprint/v1/
	maxPipeReads       = 16       // waiting at a time; more are answered as if nothing came
	maxMessageID       = 128      // bytes of what a writer calls a message
	maxIPv6Zone        = 64       // bytes of the zone in a Host field
	maxAccessName      = 128      // bytes of what an [Access] quotes from a request
	maxReason          = 256      // bytes of why it was refused, which may quote it too
	reportBurst        = 20       // refusals, and separately reads of user data, that are reported at once
	reportEvery        = time.Minute
)

// maxProxyConnections is how many connections Neutron's agents may have open.
const maxProxyConnections = 4096

// Time limits.
const (
	// PipeWait is how long a read of an empty pipe waits. It is shorter than
	// requestTime, at whose end net/http gives the request up.
	PipeWait = 15 * time.Second
	// MaxTokenTTL is how long an IMDSv2 session may be, as in EC2.
	MaxTokenTTL = 6 * time.Hour

	headerTime   = 5 * time.Second  // to send a request's header
	requestTime  = 20 * time.Second // to send a whole request
	replyTime    = 40 * time.Second // to decide, and to take the whole reply
	idleTime     = time.Minute      // between requests of one connection
	shutdownTime = 5 * time.Second  // for requests that are under way at the end
)

// Header fields, as net/http spells them, and what is sent in them.
const (
	tokenHeader       = "X-Aws-Ec2-Metadata-Token"
	tokenTTLHeader    = "X-Aws-Ec2-Metadata-Token-Ttl-Seconds"
	pipeMessageHeader = "X-Imprint-Message"
	textPlain         = "text/plain; charset=UTF-8"
	retryAfter        = "1" // seconds, for a guest whose record is not here yet
)

// HopLimit is the IP time to live, and the IPv6 hop limit, that a listener should
// set on the connections that it hands to [Server.Serve] (IP_TTL,
// IPV6_UNICAST_HOPS): replies then reach the guest itself and die at the first
// router behind it. Containers that the guest routes for need one more.
const HopLimit = 1

// Origin says how far a request can be trusted: who in the guest can read the
// reply, by its source port.
type Origin struct {
	Port    uint16 // 0 if it means nothing on this way
	Readers imprint.Readers
}

// Root reports whether only the guest's administrator can have sent the request.
func (o Origin) Root() bool { return o.Readers != 0 && o.Readers.Within(imprint.GuestRoot) }

// Guest is the instance behind a listener.
type Guest interface {
	// Snapshot returns what the guest may read now; nil while that is not known.
	// It is called for every request and must not block.
	Snapshot() *Snapshot
}

// Access is one read, or one refusal.
type Access struct {
	At     time.Time
	Origin Origin
	// Name is what was asked for, as a path without its first slash, at most
	// 128 printable ASCII characters.
	Name string
	// Refused is why it was not served, in words that the guest is not told, at most
	// 256 printable ASCII characters; "" if it was.
	Refused string
}

// Reporter takes note of what a guest did.
type Reporter interface {
	// Report is called before the reply is sent: for the first read in each dialect
	// by each class of readers in a generation, for reads of user data, and for
	// refusals. Of the latter two a burst of 20 is passed on, and then one a minute.
	// It must not block.
	Report(context.Context, Access)
}

// Inbox takes what stock software posts. Any process in the guest may do so;
// [Origin] says whether it was root.
type Inbox interface {
	// PostPassword keeps the password that the guest made up, in the text that it
	// was posted in: base64 of a ciphertext for the operator. It fails with kind
	// Conflict if this generation has one, and nothing is changed then.
	PostPassword(ctx context.Context, from Origin, text []byte) error
	// PhoneHome closes the boot: cloud-init says that it is done. The form has what
	// its phone_home module sends, such as host keys; nothing in it is proven.
	PhoneHome(ctx context.Context, from Origin, form url.Values) error
}

// Native answers imprint's own keys, those that package dialect names, to a reader.
// Errors of kind NotFound, Denied, Invalid, Conflict, Contested, Exhausted and
// Unavailable become a status; Invalid, Conflict, Contested and Exhausted are told
// to the guest in one sentence.
type Native interface {
	// Get returns the value of key for from.Readers. It decides by
	// [imprint.MayTravel] whether they may have it, and puts reads of private values
	// on record before it returns.
	Get(ctx context.Context, from Origin, key string) ([]byte, error)
	// Put sets a key. Only root's requests get here.
	Put(ctx context.Context, from Origin, key string, value []byte) error
	// Delete removes a key. Only root's requests get here.
	Delete(ctx context.Context, from Origin, key string) error
}

// Pipes carry messages between the operator and the guest's root. Names are DNS
// labels; a name that is not in use fails with kind NotFound.
type Pipes interface {
	// Next returns the oldest message to the guest, which stays, and its receipt. If
	// there is none it waits until one comes or ctx ends; then the receipt is "".
	Next(ctx context.Context, name string) (message []byte, receipt string, err error)
	// Take removes the oldest message if it has this receipt; otherwise it does
	// nothing, so that it may be repeated.
	Take(ctx context.Context, name, receipt string) error
	// Write takes a message from the guest. If id is not "" and that of the message
	// before, it is the same one. It fails with kind Exhausted while too many wait.
	Write(ctx context.Context, name, id string, message []byte) error
}
