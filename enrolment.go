package imprint

import (
	"net/netip"
	"time"
)

// State is a step in the life of a generation's claim.
type State string

// The states. The first six follow each other; the rest are side exits.
const (
	Reserved  State = "reserved"  // names and policy are fixed, nobody has asked
	Delivered State = "delivered" // the payload was read over a channel
	Claimed   State = "claimed"   // a key is bound; a certificate may follow
	Issued    State = "issued"    // the certificate exists; its receipt is not proven
	Confirmed State = "confirmed" // the machine proved key and receipt
	Closed    State = "closed"    // private values have left the live channels
	Expired   State = "expired"   // the window passed before anybody claimed
	InDispute State = "contested" // a second key claimed; everything is revoked
	Revoked   State = "revoked"   // the operator took it back
)

// Open reports whether a machine may still claim, repeat or confirm.
func (s State) Open() bool {
	switch s {
	case Reserved, Delivered, Claimed, Issued, Confirmed, Closed:
		return true
	}
	return false
}

// Enrolled reports whether the machine proved that it holds its certificate's key.
func (s State) Enrolled() bool { return s == Confirmed || s == Closed }

// Tier says how well imprint knew whom it certified.
type Tier uint8

// The trust tiers, written into every certificate.
const (
	TierApproved Tier = 0 // an operator approved by hand
	TierNetwork  Tier = 1 // armed window and privileged source port
	TierToken    Tier = 2 // one-time token over a private one-way carrier
	TierHost     Tier = 3 // the host countersigned a private two-way channel
)

// Enrolment is the claim of one generation, as observed.
type Enrolment struct {
	State State `json:"state"`
	// Expires is when a generation that nobody claimed expires; zero is never.
	Expires time.Time `json:"expires,omitzero"`
	// TokenHash is the SHA-256 of the one-time token, if one was handed out.
	TokenHash    Digest    `json:"tokenHash,omitempty"`
	TokenExpires time.Time `json:"tokenExpires,omitzero"`
	Delivery     *Delivery `json:"delivery,omitempty"`
	Claim        *Claim    `json:"claim,omitempty"`
	// Certificate is the one that was issued, or the latest renewal of it.
	Certificate *Certificate `json:"certificate,omitempty"`
	// Earlier are the certificates that renewals replaced and that have not
	// ended; they may still be used and are revoked with the latest.
	Earlier     []Lifespan `json:"earlier,omitempty"`
	ConfirmedAt time.Time  `json:"confirmedAt,omitzero"`
	ClosedAt    time.Time  `json:"closedAt,omitzero"`
	// ServedAt is when something was first read over the link-local network, and
	// HomeAt when stock software said that the machine has booted.
	ServedAt time.Time `json:"servedAt,omitzero"`
	HomeAt   time.Time `json:"homeAt,omitzero"`
	// Password is what the guest posted, encrypted to the operator; once a generation.
	Password []byte `json:"password,omitempty"`
	// Reason explains a side exit in words.
	Reason string `json:"reason,omitempty"`
}

// Lifespan says until when a certificate could be used.
type Lifespan struct {
	Serial   Serial    `json:"serial"`
	NotAfter time.Time `json:"notAfter"`
}

// Delivery records the first read of a generation's payload.
type Delivery struct {
	Channel ChannelKind `json:"channel"`
	Payload Digest      `json:"payload"`
	At      time.Time   `json:"at"`
}

// Claim binds a generation to the first public key seen. Together with the
// reservation it fixes every byte that will be signed, so that two servers, or
// one server twice, sign the same certificate.
type Claim struct {
	Key       KeyID       `json:"key"`
	PublicKey []byte      `json:"publicKey"` // DER SubjectPublicKeyInfo
	SSHHost   string      `json:"sshHost,omitempty"`
	Channel   ChannelKind `json:"channel"`
	Tier      Tier        `json:"tier"`
	Witness   HostName    `json:"witness,omitempty"` // the host that countersigned
	At        time.Time   `json:"at"`
	Serial    Serial      `json:"serial"`
	NotBefore time.Time   `json:"notBefore"`
	NotAfter  time.Time   `json:"notAfter"`
	// NeedsApproval is set while an operator has to consent; ApprovedBy says who did.
	NeedsApproval bool   `json:"needsApproval,omitempty"`
	ApprovedBy    string `json:"approvedBy,omitempty"`
}

// Grant is a decision that a certificate may be signed; it holds all that goes
// into it. Who makes a Grant holds no key, and who holds the key adds nothing.
type Grant struct {
	Tenant     TenantName
	Instance   InstanceID
	Name       InstanceName
	Generation Generation
	Tier       Tier
	Channel    ChannelKind
	Profile    string
	DNSNames   []string
	IPs        []netip.Addr
	PublicKey  []byte // DER SubjectPublicKeyInfo
	SSHHost    string // an SSH host public key to certify too, or ""
	Serial     Serial
	NotBefore  time.Time
	NotAfter   time.Time
}

// Certificate is what a Grant became.
type Certificate struct {
	Serial    Serial    `json:"serial"`
	DER       []byte    `json:"der"`           // the leaf
	SSH       string    `json:"ssh,omitempty"` // an SSH host certificate, in authorized_keys form
	NotBefore time.Time `json:"notBefore"`
	NotAfter  time.Time `json:"notAfter"`
	// Log is the origin of the issuance log that has this certificate.
	Log string `json:"log"`
}

// Submission is a certificate request together with how it came.
type Submission struct {
	Instance InstanceID
	// Tenant and Profile are those that the request was addressed to: an instance
	// of another is not found. "" is any.
	Tenant     TenantName
	Profile    string
	Generation Generation // 0: the sender does not know; the current one is meant
	Channel    ChannelKind
	CSR        []byte // DER of a PKCS #10 request
	SSHHost    string // an SSH host public key, or ""
	// Token is the one-time token that came with it, on channels that have one.
	Token Secret
	// Witness is the host that vouches that this came up the instance's own
	// private channel; "" if nobody does.
	Witness HostName
}

// Revocation is one entry of a certificate revocation list.
type Revocation struct {
	Serial Serial    `json:"serial"`
	At     time.Time `json:"at"`
	// NotAfter is when the certificate ends anyway and the entry may be dropped.
	NotAfter time.Time `json:"notAfter"`
	// Reason is a CRLReason (RFC 5280 section 5.3.1).
	Reason int `json:"reason"`
}
