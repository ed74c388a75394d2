package enrol_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"net/netip"
	"strings"
	"testing"
	"time"

	"imprint"
)

// TestConfirmation: every kind of key that may be enrolled can confirm, only
// with its own signature over the certificate that was issued.
func TestConfirmation(t *testing.T) {
	t.Parallel()
	keys := map[string]func() (crypto.Signer, error){
		"P-256":    func() (crypto.Signer, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) },
		"P-384":    func() (crypto.Signer, error) { return ecdsa.GenerateKey(elliptic.P384(), rand.Reader) },
		"Ed25519":  func() (crypto.Signer, error) { _, k, err := ed25519.GenerateKey(rand.Reader); return k, err },
		"RSA-3072": func() (crypto.Signer, error) { return rsa.GenerateKey(rand.Reader, 3072) },
	}
	for name, generate := range keys {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			key, err := generate()
			if err != nil {
				t.Fatal(err)
			}
			w, m := newWorld(), withKey(t, key, &x509.CertificateRequest{})
			id := w.reserve(t)
			early := m.confirmation(t, id, 1, []byte("leaf"))
			wantKind(t, w.engine.Report(t.Context(), early), imprint.Conflict)
			i, err := w.engine.Enrol(t.Context(), m.up(id))
			if err != nil {
				t.Fatal(err)
			}
			leaf := i.Enrolment.Certificate.DER
			for what, r := range map[string]imprint.Report{
				"of another key":         newMachine(t).confirmation(t, id, 1, leaf),
				"of another certificate": m.confirmation(t, id, 1, []byte("leaf")),
				"empty":                  said(id, imprint.ReportConfirmed, "", ""),
			} {
				err := w.engine.Report(t.Context(), r)
				if err == nil || imprint.KindOf(err) != imprint.Invalid {
					t.Errorf("a confirmation %s: %v", what, err)
				}
			}
			wantState(t, w.get(id), imprint.Issued)
			r := m.confirmation(t, id, 1, leaf)
			r.Witness = "" // it speaks for itself
			for range 2 {
				if err := w.engine.Report(t.Context(), r); err != nil {
					t.Fatal(err)
				}
			}
			wantState(t, w.get(id), imprint.Confirmed)
			if e := w.last(id); e.Kind != imprint.EventConfirmed || !w.get(id).Enrolment.ConfirmedAt.Equal(w.now) {
				t.Errorf("event %+v", e)
			}
		})
	}
}

// TestConfirmationByUse: a certificate that was used for TLS needs no signature;
// a number that somebody else says does not count.
func TestConfirmationByUse(t *testing.T) {
	t.Parallel()
	w, m := newWorld(), newMachine(t)
	id := w.reserve(t)
	i, err := w.engine.Enrol(t.Context(), m.up(id))
	if err != nil {
		t.Fatal(err)
	}
	r := imprint.Report{Instance: id, Generation: 1, Channel: imprint.NetworkEST, Kind: imprint.ReportConfirmed, Serial: "abc"}
	wantKind(t, w.engine.Report(t.Context(), r), imprint.Unauthorized)
	r.Witness, r.Channel = placed, imprint.Serial2
	wantKind(t, w.engine.Report(t.Context(), r), imprint.Invalid)
	r.Witness, r.Channel, r.Serial = "", imprint.NetworkEST, i.Enrolment.Certificate.Serial
	if err := w.engine.Report(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	wantState(t, w.get(id), imprint.Confirmed)
}

// TestWhoMayReport: only the instance's own host, or its own certificate.
func TestWhoMayReport(t *testing.T) {
	t.Parallel()
	for _, kind := range []imprint.ReportKind{
		imprint.ReportDelivered, imprint.ReportReady, imprint.ReportRead, imprint.ReportPassword, imprint.ReportRefused,
	} {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			w, m := newWorld(), newMachine(t)
			id := w.reserve(t)
			w.enrol(t, id, m)
			before := w.get(id).Enrolment
			for name, test := range map[string]struct {
				change func(*imprint.Report)
				kind   imprint.Kind
			}{
				"nobody":          {func(r *imprint.Report) { r.Witness = "" }, imprint.Unauthorized},
				"another host":    {func(r *imprint.Report) { r.Witness = other }, imprint.Denied},
				"a wrong serial":  {func(r *imprint.Report) { r.Witness, r.Serial = "", "1234" }, imprint.Unauthorized},
				"a host over EST": {func(r *imprint.Report) { r.Channel = imprint.NetworkEST }, imprint.Denied},
				"no channel":      {func(r *imprint.Report) { r.Channel = "" }, imprint.Invalid},
			} {
				r := said(id, kind, "db", "data")
				test.change(&r)
				if err := w.engine.Report(t.Context(), r); err == nil || imprint.KindOf(err) != test.kind {
					t.Errorf("%s: %v", name, err)
				}
			}
			after := w.get(id).Enrolment
			if after.State != before.State || after.Password != nil || after.Delivery != nil {
				t.Errorf("%+v", after)
			}
			serial := before.Certificate.Serial
			r := imprint.Report{Instance: id, Generation: 1, Channel: imprint.NetworkEST, Kind: kind, Name: "db", Data: []byte("data"), Serial: serial}
			if err := w.engine.Report(t.Context(), r); err != nil {
				t.Errorf("with the certificate: %v", err)
			}
		})
	}
}

func TestDelivered(t *testing.T) {
	t.Parallel()
	w := newWorld()
	id := w.reserve(t)
	for _, data := range []string{"", strings.Repeat("x", imprint.MaxPayload+1)} {
		wantKind(t, w.engine.Report(t.Context(), said(id, imprint.ReportDelivered, "", data)), imprint.Invalid)
	}
	for _, data := range []string{"payload", "rendered again"} { // only the first read counts
		if err := w.engine.Report(t.Context(), said(id, imprint.ReportDelivered, "", data)); err != nil {
			t.Fatal(err)
		}
	}
	d := w.get(id).Enrolment.Delivery
	if d.Payload != imprint.DigestOf([]byte("payload")) || d.Channel != imprint.Serial2 || !d.At.Equal(w.now) {
		t.Errorf("%+v", d)
	}
	if e := w.last(id); e.Kind != imprint.EventDelivered || e.Detail["payload"] != "sha256:"+string(d.Payload) {
		t.Errorf("event %+v", e)
	}
	// The host may carry a payload to the machine on a medium, too.
	medium := said(w.reserve(t, func(s *imprint.Spec) { s.Name = "web-2" }), imprint.ReportDelivered, "", "payload")
	medium.Channel = imprint.File
	if err := w.engine.Report(t.Context(), medium); err != nil {
		t.Error(err)
	}
	// The claim may be on record before the read is: a report can be late.
	late := w.reserve(t, func(s *imprint.Spec) { s.Name = "web-3" })
	w.enrol(t, late, newMachine(t))
	if err := w.engine.Report(t.Context(), said(late, imprint.ReportDelivered, "", "payload")); err != nil {
		t.Fatal(err)
	}
	wantState(t, w.get(late), imprint.Confirmed)
}

func TestReady(t *testing.T) {
	t.Parallel()
	w, m := newWorld(), newMachine(t)
	id := w.reserve(t)
	ready := said(id, imprint.ReportReady, "", "")
	wantKind(t, w.engine.Report(t.Context(), ready), imprint.Conflict)
	w.enrol(t, id, m)
	events := len(w.events(id, 0))
	for range 2 {
		if err := w.engine.Report(t.Context(), ready); err != nil {
			t.Fatal(err)
		}
	}
	wantEvents(t, w.events(id, events), imprint.EventClosed)
	if !w.get(id).Enrolment.ClosedAt.Equal(w.now) {
		t.Error("no time")
	}
}

// TestReads: every read is on the timeline; one that cannot be, because there
// were too many, is not allowed.
func TestReads(t *testing.T) {
	t.Parallel()
	w := newWorld()
	id := w.reserve(t)
	read := said(id, imprint.ReportRead, "db", "")
	allowed := 0
	for range 1000 {
		if err := w.engine.Report(t.Context(), read); err == nil {
			allowed++
		} else {
			wantKind(t, err, imprint.Exhausted)
		}
	}
	if n := len(w.events(id, 1)); n != allowed || n != 2*imprint.MaxParams {
		t.Errorf("%d reads allowed, %d on the timeline", allowed, n)
	}
	if e := w.last(id); e.Kind != imprint.EventRead || e.Detail["param"] != "db" || e.Channel != imprint.Serial2 {
		t.Errorf("event %+v", e)
	}
	w.now = w.now.Add(10 * time.Second)
	if err := w.engine.Report(t.Context(), read); err != nil {
		t.Error(err)
	}
	wantKind(t, w.engine.Report(t.Context(), said(id, imprint.ReportRead, "no-such", "")), imprint.Invalid)
	if _, err := w.engine.Revoke(t.Context(), id, "", "ann"); err != nil {
		t.Fatal(err)
	}
	wantKind(t, w.engine.Report(t.Context(), read), imprint.Conflict)
}

// TestPassword: one a generation; the same again is a lost reply.
func TestPassword(t *testing.T) {
	t.Parallel()
	w := newWorld()
	id := w.reserve(t)
	rsa8192 := strings.Repeat("a", 1368) // 1024 bytes in base64
	post := func(data string) error {
		return w.engine.Report(t.Context(), said(id, imprint.ReportPassword, "", data))
	}
	wantKind(t, post(""), imprint.Invalid)
	wantKind(t, post(strings.Repeat("a", 4097)), imprint.Invalid)
	for range 2 {
		if err := post(rsa8192); err != nil {
			t.Fatal(err)
		}
	}
	wantKind(t, post("another"), imprint.Conflict)
	if got := w.get(id).Enrolment.Password; string(got) != rsa8192 {
		t.Errorf("kept %q", got)
	}
	for _, e := range w.store.records[id].events {
		for _, v := range e.Detail {
			if strings.Contains(v, rsa8192) {
				t.Error("the password is on the timeline")
			}
		}
	}
	if _, err := w.engine.Rebirth(t.Context(), id, "ann"); err != nil {
		t.Fatal(err)
	}
	if w.get(id).Enrolment.Password != nil {
		t.Error("it outlived its generation")
	}
	if err := post("another"); err != nil {
		t.Error(err)
	}
}

// TestCarrierRefusals: what a carrier turned down is on the timeline, fit to
// print, and not without end.
func TestCarrierRefusals(t *testing.T) {
	t.Parallel()
	w := newWorld()
	id := w.reserve(t)
	for range 100 {
		if err := w.engine.Report(t.Context(), said(id, imprint.ReportRefused, "bad\x1b[31m\n"+strings.Repeat("é", 300), "")); err != nil {
			t.Fatal(err)
		}
	}
	reason := w.last(id).Detail["reason"]
	if strings.ContainsAny(reason, "\x1b\n") || len(reason) > 210 || !strings.HasPrefix(reason, "bad?[31m?") {
		t.Errorf("reason %q", reason)
	}
	if n := len(w.events(id, 1)); n != 8 {
		t.Errorf("%d events", n)
	}
	wantKind(t, w.engine.Report(t.Context(), said(id, "song", "", "")), imprint.Invalid)
}

// TestLinkLocal: what comes over the link-local network is on the timeline with
// who asked, the end of the boot once, and the interface that the host chose.
func TestLinkLocal(t *testing.T) {
	t.Parallel()
	w := newWorld()
	id := w.reserve(t, func(s *imprint.Spec) { s.Channels = []imprint.ChannelKind{imprint.LinkLocal} })
	report := func(r imprint.Report) error {
		r.Instance, r.Channel = id, imprint.LinkLocal
		if r.Witness == "" {
			r.Witness = placed
		}
		return w.engine.Report(t.Context(), r)
	}
	nic := &imprint.NIC{Host: placed, MAC: "02:00:00:00:00:01", IPv4: netip.MustParseAddr("169.254.7.7")}
	for _, r := range []imprint.Report{
		{Kind: imprint.ReportNIC, NIC: nic}, {Kind: imprint.ReportNIC, NIC: nic}, // said twice
		{Kind: imprint.ReportServed, Name: "openstack/latest/user_data", From: "any process, port 40000"},
		{Kind: imprint.ReportHome, From: "root, port 7"}, {Kind: imprint.ReportHome},
	} {
		if err := report(r); err != nil {
			t.Fatalf("%s: %v", r.Kind, err)
		}
	}
	wantEvents(t, w.events(id, 1), imprint.EventNIC, imprint.EventServed, imprint.EventHome)
	served := w.store.records[id].events[2]
	if served.Detail["what"] != "openstack/latest/user_data" || served.Detail["from"] != "any process, port 40000" || served.Channel != imprint.LinkLocal {
		t.Errorf("%+v", served)
	}
	if i := w.get(id); *i.NIC != *nic || !i.Enrolment.HomeAt.Equal(w.now) || !i.Enrolment.ServedAt.Equal(w.now) {
		t.Errorf("%+v, home %s", i.NIC, i.Enrolment.HomeAt)
	}
	for name, r := range map[string]imprint.Report{
		"another host's": {Kind: imprint.ReportNIC, NIC: &imprint.NIC{Host: other, MAC: nic.MAC, IPv4: nic.IPv4}},
		"routed":         {Kind: imprint.ReportNIC, NIC: &imprint.NIC{Host: placed, MAC: nic.MAC, IPv4: netip.MustParseAddr("10.0.0.1")}},
		"a group's MAC":  {Kind: imprint.ReportNIC, NIC: &imprint.NIC{Host: placed, MAC: "03:00:00:00:00:01", IPv4: nic.IPv4}},
		"no MAC":         {Kind: imprint.ReportNIC, NIC: &imprint.NIC{Host: placed, IPv4: nic.IPv4}},
		"nothing":        {Kind: imprint.ReportNIC},
	} {
		if err := report(r); imprint.KindOf(err) != imprint.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := report(imprint.Report{Kind: imprint.ReportHome, Witness: other}); imprint.KindOf(err) != imprint.Denied {
		t.Errorf("from another host: %v", err)
	}
}

// TestMessages: what went through a pipe is on the timeline, by the word of the
// instance's own host only; an operator's end of a pipe has no channel.
func TestMessages(t *testing.T) {
	t.Parallel()
	w := newWorld()
	id := w.reserve(t)
	for _, channel := range []imprint.ChannelKind{imprint.Serial2, ""} {
		r := said(id, imprint.ReportMessage, "pipe install", "")
		r.Channel, r.From = channel, "uid 0"
		if err := w.engine.Report(t.Context(), r); err != nil {
			t.Fatal(err)
		}
		r.Witness = other
		if err := w.engine.Report(t.Context(), r); err == nil {
			t.Errorf("another host reports over %q", channel)
		}
		r.Witness = ""
		if err := w.engine.Report(t.Context(), r); err == nil {
			t.Errorf("a stranger reports over %q", channel)
		}
	}
	events := w.store.records[id].events
	n := 0
	for _, e := range events {
		if e.Kind == imprint.EventMessage {
			n++
			if e.Detail["what"] != "pipe install" || e.Detail["from"] != "uid 0" {
				t.Errorf("%+v", e)
			}
		}
	}
	if n != 2 {
		t.Errorf("%d messages on the timeline: %+v", n, events)
	}
	r := said(id, imprint.ReportReady, "", "")
	if r.Channel = ""; w.engine.Report(t.Context(), r) == nil {
		t.Error("another report without a channel")
	}
}

// TestNeutron: what comes through Neutron's agent may be anybody's in the tenant's
// network. What the host did goes on record, and what proves nothing anyway.
func TestNeutron(t *testing.T) {
	t.Parallel()
	w, m := newWorld(), newMachine(t)
	id := w.reserve(t, func(s *imprint.Spec) { s.Channels = append(s.Channels, imprint.Neutron); s.Policy.Approval = true })
	for kind, want := range map[imprint.ReportKind]bool{
		imprint.ReportDelivered: true, imprint.ReportRead: true, imprint.ReportServed: true, imprint.ReportRefused: true,
		imprint.ReportHome: true, imprint.ReportPassword: true,
		imprint.ReportConfirmed: false, imprint.ReportReady: false, imprint.ReportNIC: false,
	} {
		r := said(id, kind, "db", "data")
		r.Channel = imprint.Neutron
		if err := w.engine.Report(t.Context(), r); (err == nil) != want || err != nil && imprint.KindOf(err) != imprint.Denied {
			t.Errorf("%s: %v", kind, err)
		}
		r.Witness = other
		if err := w.engine.Report(t.Context(), r); imprint.KindOf(err) != imprint.Denied {
			t.Errorf("%s from another host: %v", kind, err)
		}
	}
	if e := w.get(id).Enrolment; string(e.Password) != "data" || e.HomeAt.IsZero() || e.ServedAt.IsZero() {
		t.Errorf("%+v", e)
	}
	for _, witness := range []imprint.HostName{placed, ""} { // nor does an operator's approval count
		s := m.up(id)
		s.Channel, s.Witness = imprint.Neutron, witness
		_, err := w.engine.Enrol(t.Context(), s)
		wantKind(t, err, imprint.Invalid)
	}
}

// TestKeyOverLinkLocal: the host vouches for what root asked over the link-local
// network, as for a serial port.
func TestKeyOverLinkLocal(t *testing.T) {
	t.Parallel()
	w, m := newWorld(), newMachine(t)
	id := w.reserve(t)
	s := m.up(id)
	s.Channel = imprint.LinkLocal
	i, err := w.engine.Enrol(t.Context(), s)
	if err != nil || i.Enrolment.Claim.Tier != imprint.TierHost {
		t.Fatalf("%+v, %v", i, err)
	}
	s = newMachine(t).up(w.reserve(t))
	s.Channel, s.Witness = imprint.LinkLocal, "" // from any process
	_, err = w.engine.Enrol(t.Context(), s)
	wantKind(t, err, imprint.Unauthorized)
}
