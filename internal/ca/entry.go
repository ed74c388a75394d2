package ca

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"io"
	"net/netip"
	"slices"
	"time"

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

// Entry is one entry of the issuance log: a JSON object on one line. What can
// be read from the certificate is repeated so that the log can be searched
// without parsing certificates; [DecodeEntry] checks that both agree.
type Entry struct {
	Version    int                  `json:"v"`
	Kind       EntryKind            `json:"kind"`
	At         time.Time            `json:"at"` // when it was appended
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

func machineEntry(g *imprint.Grant, c *imprint.Certificate) Entry {
	return Entry{
		Version: entryVersion, Kind: EntryMachine,
		Tenant: g.Tenant, Instance: g.Instance, Name: g.Name, Generation: g.Generation,
		Tier: g.Tier, Channel: g.Channel, Key: imprint.KeyIDOf(g.PublicKey), Serial: g.Serial,
		DNSNames: g.DNSNames, IPs: g.IPs, NotBefore: c.NotBefore, NotAfter: c.NotAfter,
		Digest: imprint.DigestOf(c.DER), DER: c.DER, SSH: c.SSH,
	}
}

func endpointEntry(tenant imprint.TenantName, serial imprint.Serial, l *leaf, der []byte) Entry {
	return Entry{
		Version: entryVersion, Kind: EntryEndpoint, Tenant: tenant, Key: imprint.KeyIDOf(l.spki), Serial: serial,
		DNSNames: l.dnsNames, IPs: l.ips, NotBefore: l.notBefore, NotAfter: l.notAfter,
		Digest: imprint.DigestOf(der), DER: der,
	}
}

// Encode returns the entry's bytes in the log. It fails with kind
// [imprint.Exhausted] if they are more than an entry may have.
func (e *Entry) Encode() ([]byte, error) {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(e); err != nil {
		return nil, imprint.Errorf(imprint.Internal, "encode", "log entry", "%w", err)
	}
	if buf.Len() > maxEntry {
		return nil, imprint.Errorf(imprint.Exhausted, "encode", "log entry", "%d bytes; the limit is %d", buf.Len(), maxEntry)
	}
	return buf.Bytes(), nil
}

// DecodeEntry reads an entry and checks that what it says of the certificate is
// what the certificate says. It fails with kind [imprint.Invalid].
func DecodeEntry(b []byte) (*Entry, error) {
	bad := func(format string, args ...any) (*Entry, error) {
		return nil, imprint.Errorf(imprint.Invalid, "decode", "log entry", format, args...)
	}
	if len(b) > maxEntry {
		return bad("%d bytes; the limit is %d", len(b), maxEntry)
	}
	var e Entry
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&e); err != nil {
		return bad("%w", err)
	}
	if _, err := dec.Token(); err != io.EOF {
		return bad("bytes after its end")
	}
	if e.Version != entryVersion {
		return bad("version %d; this program reads version %d", e.Version, entryVersion)
	}
	if imprint.DigestOf(e.DER) != e.Digest {
		return bad("the certificate does not have the digest that the entry gives")
	}
	leaf, err := x509.ParseCertificate(e.DER)
	if err != nil {
		return bad("%w", err)
	}
	if imprint.SerialOf(leaf.SerialNumber) != e.Serial || imprint.KeyIDOf(leaf.RawSubjectPublicKeyInfo) != e.Key ||
		!leaf.NotBefore.Equal(e.NotBefore) || !leaf.NotAfter.Equal(e.NotAfter) ||
		!slices.Equal(leaf.DNSNames, e.DNSNames) || !slices.Equal(addrs(leaf), e.IPs) {
		return bad("the certificate is not the one that the entry describes")
	}
	if e.Kind == EntryMachine {
		if err := e.checkMachine(leaf); err != nil {
			return bad("%w", err)
		}
	}
	return &e, nil
}

// checkMachine checks the fields that only machines' entries have.
func (e *Entry) checkMachine(leaf *x509.Certificate) error {
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
	if who.Tenant != e.Tenant || who.Instance != e.Instance || who.Generation != e.Generation ||
		ext != (Enrolment{e.Tier, e.Generation, e.Channel}) {
		return imprint.Errorf(imprint.Invalid, "check", "certificate", "it names another machine than the entry")
	}
	return nil
}

func addrs(leaf *x509.Certificate) []netip.Addr {
	var out []netip.Addr
	for _, ip := range leaf.IPAddresses {
		addr, _ := netip.AddrFromSlice(ip)
		out = append(out, addr)
	}
	return out
}
