package imprint

// ChannelKind names a way between host and guest.
type ChannelKind string

// The channels that imprint knows. Adding one means adding a row to the table
// below; nothing else asks which kind a channel is in order to decide who may read it.
const (
	VirtioSerial ChannelKind = "virtio-serial" // a named virtio-serial port
	Serial2      ChannelKind = "serial"        // the second serial port: ttyS1, COM2
	LinkLocal    ChannelKind = "nic"           // a network interface to the host alone: HTTP at 169.254.169.254
	Neutron      ChannelKind = "neutron"       // the cloud's network: HTTP through Neutron's metadata agent
	NetworkEST   ChannelKind = "est"           // the check-in endpoint: RFC 7030 over TLS
	File         ChannelKind = "file"          // a payload that the operator carried by hand
)

// Readers is a set of parties who can read what travels over a channel.
type Readers uint8

// The parties. The host that serves the channel always reads it and is trusted
// with it, so it is not listed.
const (
	GuestProcesses Readers = 1 << iota // any process in the guest, privileged or not
	GuestRoot                          // the guest's administrator
	PlatformAdmins                     // whoever may look at the platform's configuration or consoles
	Neighbours                         // other machines on the same network
	KeyHolder                          // the holder of the enrolled key
	HostProcesses                      // any process on the hypervisor, which sees the command lines of all others
)

// Within reports whether every reader in r is also in audience.
func (r Readers) Within(audience Readers) bool { return r&^audience == 0 }

// Channel describes a [ChannelKind].
type Channel struct {
	Kind              ChannelKind
	Live              bool    // answers requests, as against one-shot media
	Capacity          int     // bytes that one value may have in the clear; 0 is unlimited
	Readers           Readers // who can read what the host sends
	HostAuthenticated bool    // the guest can be sure that its own host speaks
	Upward            bool    // the guest can report; see also [Channel.Enrols]
	Revocable         bool    // what was offered can be taken away again
	// SourcePorts says that a request's source port tells the host whether the
	// guest's root sent it; see [PortReaders].
	SourcePorts bool
}

var channels = [...]Channel{
	// The host names the port and the platform keeps firmware, kernel and getty off it.
	{VirtioSerial, true, 12 << 10, GuestRoot, true, true, true, false},
	// The device node is root:dialout 0660; dialout is counted as root (docs/security.md).
	{Serial2, true, 12 << 10, GuestRoot, true, true, true, false},
	// The host's kernel and packet filter keep everybody else off the interface;
	// in the guest any process may ask.
	{LinkLocal, true, 0, GuestProcesses | GuestRoot, true, true, true, true},
	// The agent goes by the sender's address in the tenant's network, which others
	// there can forge, as they can the reply; it drops the source port. What comes
	// up proves nothing: a password and that stock software is done.
	{Neutron, true, 0, GuestProcesses | GuestRoot | Neighbours, false, true, true, false},
	// TLS with the enrolled key at both ends of everything but the enrolment itself.
	{NetworkEST, true, 0, KeyHolder, true, true, true, false},
	// Whoever administers the platform sees what was put on a file or volume.
	{File, false, 0, GuestRoot | PlatformAdmins, false, false, false, false},
}

// ChannelOf returns the description of kind; ok is false if it is unknown.
func ChannelOf(kind ChannelKind) (c Channel, ok bool) {
	for _, c := range channels {
		if c.Kind == kind {
			return c, true
		}
	}
	return Channel{}, false
}

// Channels returns the descriptions of all known channels.
func Channels() []Channel { return append([]Channel(nil), channels[:]...) }

// Private reports whether c is a two-way channel on which the host can vouch that
// something came from the guest's root: nobody else can use it, or the host can
// tell by the source port.
func (c Channel) Private() bool {
	return c.Live && c.Upward && c.HostAuthenticated && (c.SourcePorts || c.Readers.Within(GuestRoot))
}

// Enrols reports whether a machine can enrol over c: nobody else can use it, or
// the host or TLS can tell who does.
func (c Channel) Enrols() bool {
	return c.Live && c.Upward && (c.SourcePorts || c.Readers.Within(GuestRoot|KeyHolder))
}

// From returns the channel as it is for one request, of which only readers can
// read the reply.
func (c Channel) From(readers Readers) Channel {
	c.Readers, c.SourcePorts = readers, false
	return c
}

// SealedCapacity is how many bytes a value may have that travels sealed to the
// enrolled key: the box adds a hundred bytes, and base64 a third. 0 is unlimited.
func (c Channel) SealedCapacity() int {
	return max(c.Capacity/4*3-128, 0)
}

// Visibility says who may read a parameter.
type Visibility string

// The visibilities.
const (
	// Public values are stored, shown and logged; any process in the guest may read them.
	Public Visibility = "public"
	// Private values are stored sealed, never shown or logged; root in the guest may read them.
	Private Visibility = "private"
	// SecretOnly values are never written to a disk by imprint; only the holder
	// of the enrolled key may read them, and a reinstall needs them given again.
	SecretOnly Visibility = "secret"
)

// Audience returns who may read a value of visibility v; nobody if v is unknown.
func (v Visibility) Audience() Readers {
	switch v {
	case Public:
		return GuestProcesses | GuestRoot | PlatformAdmins | Neighbours | KeyHolder | HostProcesses
	case Private:
		return GuestRoot | KeyHolder
	case SecretOnly:
		return KeyHolder
	}
	return 0
}

// MayTravel is the audience rule: a value of visibility v may be sent to
// readers only if all of them belong to its audience. A value that is sealed to
// the enrolled key has the readers [KeyHolder], whatever carries it.
func MayTravel(v Visibility, readers Readers) bool {
	return readers != 0 && readers.Within(v.Audience())
}

// privilegedPorts are the source ports that only root may bind: on Linux those
// below net.ipv4.ip_unprivileged_port_start, 1024 unless somebody changed it.
const privilegedPorts = 1024

// PortReaders returns who in the guest can read the reply to a request that came
// from this TCP or UDP source port, where the guest's own kernel decides who may
// bind it. 0 is a port that is not known.
func PortReaders(port uint16) Readers {
	if port > 0 && port < privilegedPorts {
		return GuestRoot
	}
	return GuestProcesses | GuestRoot
}

// MayHoldToken is the audience rule for a one-time token on its way to a machine
// over a channel that nothing comes back on: whoever reads it first could enrol in
// the machine's place, so only those may who could be the machine anyway.
func MayHoldToken(readers Readers) bool {
	return readers != 0 && readers.Within(GuestRoot|PlatformAdmins)
}
