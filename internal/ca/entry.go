package ca

import (
	"crypto/x509"
	"net/netip"
	"time"

	"golang.org/x/crypto/cryptobyte"

	"imprint"
)

// entryVersion is the only version of the log's entries so far.
const entryVersion = 1

// maxEntry is the size limit of one entry in bytes (C2SP tlog-tiles).
const maxEntry = 1<<16 - 1

// EntryKind says what sort of certificate an entry records.
type EntryKind string

// The kinds of entries.
const (
	EntryMachine  EntryKind = "machine"
	EntryEndpoint EntryKind = "endpoint"
)

// Entry is one entry of the issuance log. The log has only At, Tenant, Name, SSH
// and the certificate itself, see [Entry.Encode]; [DecodeEntry] reads the rest
// from that, so that an entry cannot say otherwise.
type Entry struct {
	Kind       EntryKind            `json:"kind"`
	At         time.Time            `json:"at"` // when it was appended, to the millisecond
	Tenant     imprint.TenantName   `json:"tenant"`
	Instance   imprint.InstanceID   `json:"instance,omitempty"`
	Name       imprint.InstanceName `json:"name,omitempty"`
	Generation imprint.Generation   `json:"generation,omitempty"`
	Tier       imprint.Tier         `json:"tier,omitempty"`
	Channel    imprint.ChannelKind  `json:"channel,omitempty"`
	Key        imprint.KeyID        `json:"key"`
	Serial     imprint.Serial       `json:"serial"`
	DNSNames   []string             `json:"dnsNames,omitempty"`
	IPs        []netip.Addr         `json:"ips,omitempty"`
	NotBefore  time.Time            `json:"notBefore"`
	NotAfter   time.Time            `json:"notAfter"`
	Digest     imprint.Digest       `json:"sha256"` // of DER
	DER        []byte               `json:"der"`
	SSH        string               `json:"ssh,omitempty"`
}

// Numbers of the kinds in the log.
const (
	wireMachine  = 0
	wireEndpoint = 1
)

// Encode returns the entry's bytes in the log, in the presentation language of
// TLS (RFC 8446 section 3):
//
//	enum { machine(0), endpoint(1), (255) } Kind;
//	struct {
//	    uint8  version = 1;
//	    Kind   kind;
//	    uint64 at;                       // milliseconds since 1970
//	    opaque tenant<1..63>;
//	    opaque name<0..63>;              // of the instance; empty for an endpoint
//	    opaque certificate<1..2^16-1>;   // DER
//	    opaque ssh<0..2^16-1>;           // SSH host certificate, a line without its end
//	} Entry;
//
// It fails with kind [imprint.Exhausted] if they are more than an entry may have.
func (e *Entry) Encode() ([]byte, error) {
	kind := uint8(wireMachine)
	if e.Kind == EntryEndpoint {
		kind = wireEndpoint
	}
	opaque := func(s string) cryptobyte.BuilderContinuation {
		return func(b *cryptobyte.Builder) { b.AddBytes([]byte(s)) }
	}
	b := cryptobyte.NewBuilder(make([]byte, 0, 256+len(e.DER)+len(e.SSH)))
	b.AddUint8(entryVersion)
	b.AddUint8(kind)
	b.AddUint64(uint64(e.At.UnixMilli()))
	b.AddUint8LengthPrefixed(opaque(string(e.Tenant)))
	b.AddUint8LengthPrefixed(opaque(string(e.Name)))
	b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(e.DER) })
	b.AddUint16LengthPrefixed(opaque(e.SSH))
	data, err := b.Bytes()
	if err != nil || len(data) > maxEntry {
		return nil, imprint.Errorf(imprint.Exhausted, "encode", "log entry", "more than %d bytes", maxEntry)
	}
	return data, nil
}

// DecodeEntry reads an entry and what its certificate says. It fails with kind
// [imprint.Invalid], also if the certificate is of another tenant.
func DecodeEntry(data []byte) (*Entry, error) {
	bad := func(format string, args ...any) (*Entry, error) {
		return nil, imprint.Errorf(imprint.Invalid, "decode", "log entry", format, args...)
	}
	var version, kind uint8
	var at uint64
	var tenant, name, der, ssh cryptobyte.String
	s := cryptobyte.String(data)
	if !s.ReadUint8(&version) {
		return bad("it is empty")
	}
	if version != entryVersion {
		return bad("version %d; this program reads version %d", version, entryVersion)
	}
	if !s.ReadUint8(&kind) || !s.ReadUint64(&at) || !s.ReadUint8LengthPrefixed(&tenant) || !s.ReadUint8LengthPrefixed(&name) ||
		!s.ReadUint16LengthPrefixed(&der) || !s.ReadUint16LengthPrefixed(&ssh) || !s.Empty() {
		return bad("it is cut off, or has bytes after its end")
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return bad("%w", err)
	}
	e := &Entry{
		At: time.UnixMilli(int64(at)).UTC(), Tenant: imprint.TenantName(tenant), Name: imprint.InstanceName(name),
		Key: imprint.KeyIDOf(leaf.RawSubjectPublicKeyInfo), Serial: imprint.SerialOf(leaf.SerialNumber),
		DNSNames: leaf.DNSNames, IPs: addrs(leaf), NotBefore: leaf.NotBefore, NotAfter: leaf.NotAfter,
		Digest: imprint.DigestOf(der), DER: der, SSH: string(ssh),
	}
	switch kind {
	case wireEndpoint:
		e.Kind = EntryEndpoint
		if err := imprint.CheckLabel("tenant name", string(e.Tenant)); err != nil {
			return bad("%w", err)
		}
	case wireMachine:
		e.Kind = EntryMachine
		if err := e.readMachine(leaf); err != nil {
			return bad("%w", err)
		}
	default:
		return bad("kind %d is not known", kind)
	}
	return e, nil
}

// readMachine fills in what only machines' entries have.
func (e *Entry) readMachine(leaf *x509.Certificate) error {
	if err := imprint.CheckLabel("instance name", string(e.Name)); err != nil {
		return err
	}
	if len(leaf.URIs) != 1 {
		return imprint.Errorf(imprint.Invalid, "check", "certificate", "%d URIs", len(leaf.URIs))
	}
	_, who, err := ParseURI(leaf.URIs[0].String())
	if err != nil {
		return err
	}
	ext, err := enrolmentOf(leaf)
	if err != nil {
		return err
	}
	if who.Tenant != e.Tenant || ext.Generation != who.Generation {
		return imprint.Errorf(imprint.Invalid, "check", "certificate", "it is of tenant %s and generation %d; expected %s and %d",
			who.Tenant, who.Generation, e.Tenant, ext.Generation)
	}
	e.Instance, e.Generation, e.Tier, e.Channel = who.Instance, who.Generation, ext.Tier, ext.Channel
	return nil
}

func machineEntry(g *imprint.Grant, c *imprint.Certificate) Entry {
	return Entry{
		Kind:   EntryMachine,
		Tenant: g.Tenant, Instance: g.Instance, Name: g.Name, Generation: g.Generation,
		Tier: g.Tier, Channel: g.Channel, Key: imprint.KeyIDOf(g.PublicKey), Serial: g.Serial,
		DNSNames: g.DNSNames, IPs: g.IPs, NotBefore: c.NotBefore, NotAfter: c.NotAfter,
		Digest: imprint.DigestOf(c.DER), DER: c.DER, SSH: c.SSH,
	}
}

func endpointEntry(tenant imprint.TenantName, serial imprint.Serial, l *leaf, der []byte) Entry {
	return Entry{
		Kind: EntryEndpoint, Tenant: tenant, Key: imprint.KeyIDOf(l.spki), Serial: serial,
		DNSNames: l.dnsNames, IPs: l.ips, NotBefore: l.notBefore, NotAfter: l.notAfter,
		Digest: imprint.DigestOf(der), DER: der,
	}
}

func addrs(leaf *x509.Certificate) []netip.Addr {
	var out []netip.Addr
	for _, ip := range leaf.IPAddresses {
		addr, _ := netip.AddrFromSlice(ip)
		out = append(out, addr)
	}
	return out
}
