package imprint

import "time"

// Change is what one move writes besides the instance's record: all of it in
// the same transaction as the record, or none of it.
type Change struct {
	// Events are appended to the timeline; the store fills in Instance, Seq,
	// Generation and, where it is zero, At.
	Events []Event
	// BindKey claims a public key for this instance and generation. The store
	// refuses the whole change with kind [Exists] if the key belongs to another
	// instance or generation already.
	BindKey KeyID
	// Revoke adds entries to the tenant's revocation list.
	Revoke []Revocation
	// Log is queued for an issuance log, unless it is nil.
	Log *LogEntry
	// WakeAt asks the store to report the instance as due at about that time;
	// zero cancels an earlier request. It is a reminder: what is decided then
	// depends on the record, not on the reminder having come.
	WakeAt time.Time
	// Keep leaves the record unwritten: nothing changed.
	Keep bool
}

// LogEntry is an entry on its way into an issuance log. The store keeps it until
// the log has it, so that what was issued and its entry are written in one
// transaction.
type LogEntry struct {
	Log    string // its origin
	At     time.Time
	Serial Serial
	Data   []byte
}

// ReportKind names what a [Report] says.
type ReportKind string

// The reports.
const (
	ReportDelivered ReportKind = "delivered" // the payload was read; Data is the payload
	ReportConfirmed ReportKind = "confirmed" // Data is a signature over [ConfirmationMessage], or Serial is set
	ReportReady     ReportKind = "ready"     // the machine has all it needs; the enrolment closes
	ReportRead      ReportKind = "read"      // a private or secret value was read; Name is the parameter
	ReportPassword  ReportKind = "password"  // Data is a password, encrypted to the operator
	ReportRefused   ReportKind = "refused"   // a carrier turned a request down; Name is the reason
	ReportServed    ReportKind = "served"    // something that is not private was read; Name is what
	ReportHome      ReportKind = "home"      // stock software says that the machine has booted
	ReportNIC       ReportKind = "nic"       // the host chose NIC for the instance
	ReportMessage   ReportKind = "message"   // messages went through a pipe; Name is how many of which
	ReportMedium    ReportKind = "medium"    // the machine says what became of Medium
)

// Known reports whether k is one of the reports above.
func (k ReportKind) Known() bool {
	switch k {
	case ReportDelivered, ReportConfirmed, ReportReady, ReportRead, ReportPassword, ReportRefused, ReportServed, ReportHome, ReportNIC, ReportMessage, ReportMedium:
		return true
	}
	return false
}

// Report is what comes up a live channel.
type Report struct {
	Instance   InstanceID
	Generation Generation
	Channel    ChannelKind
	Kind       ReportKind
	Name       string
	Data       []byte
	// From says who in the guest asked, in words, where the channel tells.
	From   string
	NIC    *NIC
	Medium *MediumEnd
	// Serial is the certificate with which the guest authenticated, on channels
	// that have mutual TLS; "" elsewhere.
	Serial Serial
	// Witness is the host whose own channel brought the report; "" over TLS.
	Witness HostName
	// ID tells the report from every other of the instance, if its host kept it
	// and may send it again without knowing whether it arrived; else "".
	ID string
	// Seen is when the host kept it.
	Seen time.Time
}

// Identity is whom a certificate names.
type Identity struct {
	Tenant     TenantName
	Instance   InstanceID
	Generation Generation
	Tier       Tier
	Serial     Serial
	Key        KeyID
}
