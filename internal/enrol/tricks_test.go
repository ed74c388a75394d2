package enrol_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"strings"
	"testing"
	"time"
	"unicode"

	"imprint"
	"imprint/internal/enrol"
)

// Names that look like the reserved ones, and text that is meant for the
// operator's terminal.
func TestTrickyCommonNames(t *testing.T) {
	t.Parallel()
	for cn, good := range map[string]bool{
		"kiosk":                       true,
		"KIOSK":                       true,
		"Kiosk.Example.NET":           true,
		"\u212aiosk":                  false, // the Kelvin sign, which Unicode folds to k
		"ki\u00f6sk":                  false,
		"kiosk\x00.example.org":       false,
		"kiosk.":                      false,
		" kiosk":                      false,
		"\u202eksoik":                 false, // written backwards
		"a\u009b31mred\x1b[0m\r\nlog": false, // C1 and C0 controls
		strings.Repeat("long", 1000):  false,
	} {
		w, m := newWorld(), newMachine(t)
		id := w.reserve(t, func(s *imprint.Spec) { s.Name, s.DNSNames = "kiosk", []string{"kiosk.example.net"} })
		_, err := w.engine.Enrol(t.Context(), m.asking(t, &x509.CertificateRequest{Subject: pkix.Name{CommonName: cn}}).up(id))
		if good {
			if err != nil {
				t.Errorf("CN %q: %v", cn, err)
			}
			continue
		}
		wantKind(t, err, imprint.Invalid)
		wantState(t, w.get(id), imprint.Reserved)
		for _, said := range []string{err.Error(), w.last(id).Detail["reason"]} {
			if len(said) > 400 || strings.ContainsFunc(said, func(r rune) bool { return !unicode.IsPrint(r) }) {
				t.Errorf("CN %q is told as %q", cn, said)
			}
		}
	}
}

// Two lists of names, of which a reader may see only one.
func TestTwoSubjectAltNames(t *testing.T) {
	t.Parallel()
	w, m := newWorld(), newMachine(t)
	id := w.reserve(t)
	san := func(name string) pkix.Extension {
		value, err := asn1.Marshal([]asn1.RawValue{{Class: asn1.ClassContextSpecific, Tag: 2, Bytes: []byte(name)}})
		if err != nil {
			t.Fatal(err)
		}
		return pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Value: value}
	}
	_, err := w.engine.Enrol(t.Context(), m.asking(t, &x509.CertificateRequest{
		ExtraExtensions: []pkix.Extension{san("web-1.example.net"), san("www.example.org")},
	}).up(id))
	wantKind(t, err, imprint.Invalid)
	wantState(t, w.get(id), imprint.Reserved)
}

// One key has one name: encoding/asn1 lets a SEQUENCE have more elements than
// it knows, so that the same key could have any number of digests.
func TestOneEncodingOfAKey(t *testing.T) {
	t.Parallel()
	key := must[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	point, err := key.Public().(*ecdsa.PublicKey).Bytes()
	if err != nil {
		t.Fatal(err)
	}
	type algorithm struct {
		OID, Curve asn1.ObjectIdentifier
		More       int `asn1:"optional"`
	}
	request := func(more int) []byte {
		tbs, err := asn1.Marshal(struct {
			Version int
			Subject pkix.RDNSequence
			Key     struct {
				Algorithm algorithm
				Bits      asn1.BitString
			}
			Attributes []asn1.RawValue `asn1:"tag:0,set"`
		}{Key: struct {
			Algorithm algorithm
			Bits      asn1.BitString
		}{
			algorithm{asn1.ObjectIdentifier{1, 2, 840, 10045, 2, 1}, asn1.ObjectIdentifier{1, 2, 840, 10045, 3, 1, 7}, more},
			asn1.BitString{Bytes: point, BitLength: 8 * len(point)},
		}})
		if err != nil {
			t.Fatal(err)
		}
		digest := sha256.Sum256(tbs)
		signature, err := key.Sign(rand.Reader, digest[:], nil)
		if err != nil {
			t.Fatal(err)
		}
		der, err := asn1.Marshal(struct {
			TBS       asn1.RawValue
			Algorithm pkix.AlgorithmIdentifier
			Signature asn1.BitString
		}{
			asn1.RawValue{FullBytes: tbs},
			pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}},
			asn1.BitString{Bytes: signature, BitLength: 8 * len(signature)},
		})
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	if _, err := enrol.ParseRequest(request(0)); err != nil {
		t.Fatal(err)
	}
	_, err = enrol.ParseRequest(request(7))
	wantKind(t, err, imprint.Invalid)
}

// A flawed request from nobody in particular is a request from nobody in
// particular: its answer must not tell that the instance exists, nor its state.
func TestFlawsComeAfterEvidence(t *testing.T) {
	t.Parallel()
	w := newWorld()
	id := w.reserve(t)
	right := token(t, w, id)
	stranger := imprint.Submission{Instance: id, Channel: imprint.NetworkEST, CSR: []byte("noise"), Token: imprint.NewSecret([]byte("guess"))}
	guest := stranger
	guest.Token = right
	neighbour := imprint.Submission{Instance: id, Channel: imprint.Serial2, CSR: []byte("noise"), Witness: other}
	for _, test := range []struct {
		who  imprint.Submission
		kind imprint.Kind
	}{{stranger, imprint.Unauthorized}, {guest, imprint.Invalid}, {neighbour, imprint.Denied}} {
		_, err := w.engine.Enrol(t.Context(), test.who)
		wantKind(t, err, test.kind)
		if e := w.last(id); e.Kind != imprint.EventRefused || e.Channel != test.who.Channel {
			t.Errorf("event %+v", e)
		}
	}
	wantState(t, w.get(id), imprint.Reserved)
}

// Nothing comes up a medium, though its host may say that it was written.
func TestMediumCarriesNothingUp(t *testing.T) {
	t.Parallel()
	w, m := newWorld(), newMachine(t)
	id := w.reserve(t)
	byFile := m.est(id, token(t, w, id))
	byFile.Channel = imprint.File
	_, err := w.engine.Enrol(t.Context(), byFile)
	wantKind(t, err, imprint.Invalid)
	i := w.enrol(t, id, m)
	for _, kind := range []imprint.ReportKind{imprint.ReportConfirmed, imprint.ReportReady, imprint.ReportRead, imprint.ReportPassword} {
		r := said(id, kind, "db", "data")
		r.Channel = imprint.File
		wantKind(t, w.engine.Report(t.Context(), r), imprint.Denied)
	}
	wantState(t, i, imprint.Confirmed)
	r := said(id, imprint.ReportDelivered, "", "payload")
	r.Channel = imprint.File
	if err := w.engine.Report(t.Context(), r); err != nil {
		t.Error(err)
	}
}

// The consent of nobody is none, and must not leave a claim that waits for ever
// under the word "approved".
func TestApprovalHasAName(t *testing.T) {
	t.Parallel()
	w, m := newWorld(), newMachine(t)
	id := w.reserve(t, func(s *imprint.Spec) { s.Policy.Approval = true })
	_, err := w.engine.Enrol(t.Context(), m.up(id))
	wantKind(t, err, imprint.Pending)
	_, err = w.engine.Approve(t.Context(), id, "")
	wantKind(t, err, imprint.Invalid)
	wantEvents(t, w.events(id, 1), imprint.EventClaimed, imprint.EventWaiting)
	if _, err = w.engine.Approve(t.Context(), id, "ann"); err != nil {
		t.Fatal(err)
	}
	w.now = w.now.Add(5 * 24 * time.Hour) // a renewal does not wait again
	before := w.get(id).Enrolment.Certificate.Serial
	i, err := w.engine.Enrol(t.Context(), m.up(id))
	if err != nil || i.Enrolment.Certificate.Serial == before {
		t.Errorf("renewal: %v", err)
	}
}

// An operator who comes back from leave approves a certificate that begins to
// live then.
func TestLateApproval(t *testing.T) {
	t.Parallel()
	w, m := newWorld(), newMachine(t)
	id := w.reserve(t, func(s *imprint.Spec) { s.Policy.Approval = true })
	_, err := w.engine.Enrol(t.Context(), m.up(id))
	wantKind(t, err, imprint.Pending)
	w.now = w.now.Add(30 * 24 * time.Hour)
	i, err := w.engine.Approve(t.Context(), id, "ann")
	if err != nil {
		t.Fatal(err)
	}
	if c := i.Enrolment.Certificate; !c.NotAfter.Equal(w.now.Add(enrol.DefaultLifetime)) || len(w.signer.grants) != 1 {
		t.Errorf("at %s it is valid from %s to %s", w.now, c.NotBefore, c.NotAfter)
	}
}

// A machine that is expected on its serial port cannot be claimed by a stranger
// on the network who knows its name, whatever an operator might approve later.
func TestApprovalIsNoInvitationToOtherChannels(t *testing.T) {
	t.Parallel()
	w, stranger, m := newWorld(), newMachine(t), newMachine(t)
	id := w.reserve(t, func(s *imprint.Spec) {
		s.Policy.Approval = true
		s.Channels = []imprint.ChannelKind{imprint.Serial2}
	})
	_, err := w.engine.Enrol(t.Context(), stranger.est(id, imprint.Secret{}))
	wantKind(t, err, imprint.Unauthorized)
	if w.get(id).Enrolment.Claim != nil {
		t.Error("the stranger holds the claim")
	}
	_, err = w.engine.Enrol(t.Context(), m.up(id))
	wantKind(t, err, imprint.Pending)
}

// Whoever may ask may not fill the server's disk with refusals, neither before a
// decision nor after everything is over.
func TestRefusalsDoNotFillTheLog(t *testing.T) {
	t.Parallel()
	w, m := newWorld(), newMachine(t)
	id := w.reserve(t)
	for range 500 {
		wrong := m.up(id)
		wrong.Witness = other
		w.engine.Enrol(t.Context(), wrong)
	}
	if _, err := w.engine.Revoke(t.Context(), id, "test", "alice"); err != nil {
		t.Fatal(err)
	}
	for range 500 {
		w.engine.Enrol(t.Context(), m.up(id))
	}
	if n := strings.Count(w.log.String(), "\n"); n == 0 || n > 20 {
		t.Errorf("1000 refusals made %d lines in the log", n)
	}
}
