package ca

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"imprint"
)

// byX509 has crypto/x509 make the certificate of l.
func byX509(t *rapid.T, a *Authority, l *leaf) []byte {
	purposes := []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	if l.serverOnly {
		purposes = purposes[:1]
	}
	template := &x509.Certificate{
		SerialNumber: l.serial, Subject: pkix.Name{CommonName: l.commonName},
		NotBefore: l.notBefore, NotAfter: l.notAfter, SubjectKeyId: l.keyID, DNSNames: l.dnsNames,
		BasicConstraintsValid: true, MaxPathLen: -1, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: purposes,
	}
	if _, ok := l.publicKey.(*rsa.PublicKey); ok {
		template.KeyUsage |= x509.KeyUsageKeyEncipherment
	}
	for _, ip := range l.ips {
		template.IPAddresses = append(template.IPAddresses, ip.AsSlice())
	}
	if l.uri != "" {
		u, err := url.Parse(l.uri)
		if err != nil {
			t.Fatal(err)
		}
		template.URIs = []*url.URL{u}
	}
	if a.material.CRL != "" {
		template.CRLDistributionPoints = []string{a.material.CRL}
	}
	if l.extension.Id != nil {
		template.ExtraExtensions = []pkix.Extension{l.extension}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.issuing[0], l.publicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// onP384 is an authority whose issuing key is on the other curve, without a CRL.
func onP384(t *testing.T) *Authority {
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	root, ssh := newKey(t), newKey(t)
	p := testProfile()
	p.CRL = ""
	m, err := Create(p, CreateKeys{Root: root, Issuing: key.Public(), SSH: ssh.Public()}, clock)
	if err != nil {
		t.Fatal(err)
	}
	a, err := Open(m, Keys{Issuing: key, SSH: ssh}, discard{})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// Whatever is granted, the bytes are those that crypto/x509 makes of it.
func TestLeavesAreAsX509WritesThem(t *testing.T) {
	t.Parallel()
	authorities := []*Authority{newTestCA(t, testProfile()).Authority, onP384(t)}
	ed, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	modulus := new(big.Int).Lsh(big.NewInt(1), 3071)
	var spkis [][]byte
	for _, key := range []crypto.PublicKey{
		newKey(t).Public(), p384.Public(), ed, &rsa.PublicKey{N: modulus.Add(modulus, big.NewInt(12345)), E: 65537},
	} {
		spkis = append(spkis, marshalSPKI(t, key))
	}
	rapid.Check(t, func(t *rapid.T) {
		a := rapid.SampledFrom(authorities).Draw(t, "authority")
		start := rapid.Int64Range(0, int64(IssuingLifetime/time.Second)-1).Draw(t, "start")
		serial := imprint.SerialOf(new(big.Int).SetBytes(rapid.SliceOfN(rapid.Byte(), 1, 19).Filter(func(b []byte) bool { return b[0] > 0 }).Draw(t, "serial")))
		g := imprint.Grant{
			Tenant: "acme", Instance: imprint.NewInstanceID(), Name: "web-1", Serial: serial,
			Generation: imprint.Generation(rapid.Uint32Min(1).Draw(t, "generation")),
			Tier:       imprint.Tier(rapid.IntRange(0, 3).Draw(t, "tier")),
			Channel:    imprint.ChannelKind(rapid.StringN(1, 8, maxChannel).Draw(t, "channel")),
			PublicKey:  rapid.SampledFrom(spkis).Draw(t, "key"),
			NotBefore:  clock.Add(time.Duration(start) * time.Second),
		}
		g.NotAfter = g.NotBefore.Add(time.Duration(rapid.Int64Range(1, 1<<28).Draw(t, "life")) * time.Second)
		for i := range rapid.IntRange(0, imprint.MaxNames).Draw(t, "names") {
			label := strings.Repeat("x", rapid.IntRange(1, 60).Draw(t, "label"))
			g.DNSNames = append(g.DNSNames, fmt.Sprintf("%s%d.acme.example", label, i))
		}
		for i := range rapid.IntRange(0, imprint.MaxNames).Draw(t, "addresses") {
			g.IPs = append(g.IPs, netip.AddrFrom4([4]byte{10, 1, 7, byte(i)}), netip.MustParseAddr(fmt.Sprintf("fd00:1::%d", i)))
		}
		g.IPs = g.IPs[:min(len(g.IPs), imprint.MaxNames)]
		l, err := a.machineLeaf(&g)
		if err != nil {
			t.Fatal(err)
		}
		if rapid.Bool().Draw(t, "endpoint") {
			l.serverOnly, l.uri, l.extension = true, "", pkix.Extension{}
			l.dnsNames = append(l.dnsNames, "localhost")
		}
		der, err := a.sign(l)
		if err != nil {
			t.Fatal(err)
		}
		if want := byX509(t, a, l); !bytes.Equal(der, want) {
			t.Fatalf("%x\n%x by crypto/x509", der, want)
		}
	})
}

// In 2050 dates change their form.
func TestDatesFrom2050(t *testing.T) {
	t.Parallel()
	c := newTestCA(t, testProfile())
	g := testGrant(t)
	l, err := c.machineLeaf(&g)
	if err != nil {
		t.Fatal(err)
	}
	for _, l.notAfter = range []time.Time{
		time.Date(2049, 12, 31, 23, 59, 59, 0, time.UTC), time.Date(2050, 1, 1, 0, 0, 0, 0, time.UTC),
	} {
		der, err := c.sign(l)
		if err != nil {
			t.Fatal(err)
		}
		if got := parse(t, der).NotAfter; !got.Equal(l.notAfter) {
			t.Errorf("%s became %s", l.notAfter, got)
		}
	}
}
