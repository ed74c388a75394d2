package imprint

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"time"
)

// MaxPayload is the size limit of an encoded [Payload] in bytes, so that it
// fits a serial frame, a SOL exchange and an SMBIOS string.
const MaxPayload = 4 << 10

// MaxYear is the last year that a guest believes it is. Clocks that count
// nanoseconds end in 2262.
const MaxYear = 2199

// PayloadVersion is the only version of the format so far.
const PayloadVersion = 1

// Payload is the canonical bootstrap document: the same bytes on every carrier.
// It never contains a private key.
type Payload struct {
	Version    int          `json:"imprint"`
	Time       time.Time    `json:"time"` // when it was rendered; the guest's clock only moves forward to it
	Instance   InstanceID   `json:"instance"`
	Generation Generation   `json:"generation"`
	Tenant     TenantName   `json:"tenant"`
	Name       InstanceName `json:"name"`
	DNSNames   []string     `json:"dnsNames,omitempty"` // what belongs in the request
	IPs        []netip.Addr `json:"ips,omitempty"`
	Network    *Network     `json:"network,omitempty"`
	CA         string       `json:"ca"`                // PEM of the one CA to trust
	CheckIn    []string     `json:"checkIn,omitempty"` // base URLs of the check-in endpoint
	Token      string       `json:"token,omitempty"`   // only on one-way carriers
}

// Encode returns the payload's canonical bytes. It fails with kind [Exhausted]
// if they exceed [MaxPayload].
func (p *Payload) Encode() ([]byte, error) {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(p); err != nil {
		return nil, Errorf(Internal, "encode", "payload", "%w", err)
	}
	if buf.Len() > MaxPayload {
		return nil, Errorf(Exhausted, "encode", "payload", "%d bytes; the limit is %d", buf.Len(), MaxPayload).
			WithHint("shorten the network configuration or the list of names")
	}
	return buf.Bytes(), nil
}

// DecodePayload reads a payload and checks what a guest depends on. Unknown
// fields are allowed, so that an older agent reads a newer server's document of
// the same version. It fails with kind [Invalid].
func DecodePayload(b []byte) (*Payload, error) {
	if len(b) > MaxPayload {
		return nil, Errorf(Invalid, "decode", "payload", "%d bytes; the limit is %d", len(b), MaxPayload)
	}
	var p Payload
	dec := json.NewDecoder(bytes.NewReader(b))
	if err := dec.Decode(&p); err != nil {
		return nil, Errorf(Invalid, "decode", "payload", "%w", err)
	}
	if _, err := dec.Token(); err != io.EOF {
		return nil, Errorf(Invalid, "decode", "payload", "bytes after its end")
	}
	switch {
	case p.Version != PayloadVersion:
		return nil, Errorf(Invalid, "decode", "payload", "version %d; this program reads version %d", p.Version, PayloadVersion)
	case !ValidID(string(p.Instance)):
		return nil, Errorf(Invalid, "decode", "payload", "instance %q is not an identifier", p.Instance)
	case p.Generation == 0:
		return nil, Errorf(Invalid, "decode", "payload", "generation 0")
	case p.CA == "":
		return nil, Errorf(Invalid, "decode", "payload", "no CA to trust")
	case p.Time.Year() > MaxYear:
		return nil, Errorf(Invalid, "decode", "payload", "the year %d", p.Time.Year())
	}
	if err := CheckLabel("payload tenant", string(p.Tenant)); err != nil { // it becomes a part of file names
		return nil, err
	}
	if err := CheckLabel("payload name", string(p.Name)); err != nil {
		return nil, err
	}
	return &p, nil
}

// ConfirmationMessage is what the machine signs with its enrolled key to prove
// that it holds the key and has received the certificate leaf (DER).
func ConfirmationMessage(id InstanceID, gen Generation, leaf []byte) []byte {
	return fmt.Appendf(nil, "imprint confirm v1\n%s\n%d\n%s\n", id, gen, DigestOf(leaf))
}
