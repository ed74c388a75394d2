package enrol_test

import (
	"crypto/x509"
	"net"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"imprint"
)

func token(t testing.TB, w *world, id imprint.InstanceID) imprint.Secret {
	t.Helper()
	secret, err := w.engine.Token(t.Context(), id, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return secret
}

// TestFirstBirth follows one machine and shows that it costs one transaction
// until the certificate leaves.
func TestFirstBirth(t *testing.T) {
	t.Parallel()
	w, m := newWorld(), newMachine(t)
	id := w.reserve(t)
	if err := w.engine.Report(t.Context(), said(id, imprint.ReportDelivered, "", "payload")); err != nil {
		t.Fatal(err)
	}
	wantState(t, w.get(id), imprint.Delivered)
	before := w.store.updates
	s := m.up(id)
	s.SSHHost = sshEd25519 + " a comment"
	i, err := w.engine.Enrol(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	wantState(t, i, imprint.Issued)
	if n := w.store.updates - before; n != 1 {
		t.Errorf("%d updates", n)
	}
	g := w.signer.grants[0]
	if g.Tier != imprint.TierHost || g.Channel != imprint.Serial2 || g.SSHHost != sshEd25519 || g.Generation != 1 ||
		!slices.Equal(g.DNSNames, []string{"web-1.example.net"}) || len(g.IPs) != 1 || imprint.KeyIDOf(g.PublicKey) != m.id {
		t.Errorf("grant %+v", g)
	}
	if w.now.Sub(g.NotBefore) != time.Hour || g.NotAfter.Sub(w.now) != 7*24*time.Hour {
		t.Errorf("valid from %s to %s", g.NotBefore, g.NotAfter)
	}
	if err := w.engine.Report(t.Context(), m.confirmation(t, id, 1, i.Enrolment.Certificate.DER)); err != nil {
		t.Fatal(err)
	}
	if err := w.engine.Report(t.Context(), said(id, imprint.ReportReady, "", "")); err != nil {
		t.Fatal(err)
	}
	wantState(t, w.get(id), imprint.Closed)
	wantEvents(t, w.events(id, 0), imprint.EventReserved, imprint.EventDelivered, imprint.EventClaimed,
		imprint.EventIssued, imprint.EventConfirmed, imprint.EventClosed)
	issued := w.store.records[id].events[3].Detail
	if issued["serial"] != string(g.Serial) || issued["names"] != "web-1.example.net,10.0.0.7" || issued["tier"] != "3" {
		t.Errorf("issued event %v", issued)
	}
}

// TestRepeat: a machine that lost a reply asks again, in any state and at either
// server, and gets the same bytes without anything being signed or written.
func TestRepeat(t *testing.T) {
	t.Parallel()
	w, m := newWorld(), newMachine(t)
	second := w.newEngine()
	id := w.reserve(t)
	first, err := w.engine.Enrol(t.Context(), m.up(id))
	if err != nil {
		t.Fatal(err)
	}
	again := func() {
		t.Helper()
		events := len(w.events(id, 0))
		i, err := second.Enrol(t.Context(), m.up(id))
		if err != nil {
			t.Fatal(err)
		}
		if string(i.Enrolment.Certificate.DER) != string(first.Enrolment.Certificate.DER) {
			t.Error("another certificate")
		}
		wantEvents(t, w.events(id, events))
	}
	again()
	w.enrol(t, id, m)
	again()
	if err := w.engine.Report(t.Context(), said(id, imprint.ReportReady, "", "")); err != nil {
		t.Fatal(err)
	}
	again()
	if len(w.signer.grants) != 1 {
		t.Errorf("%d certificates were signed", len(w.signer.grants))
	}
}

// TestTiers: what vouches for a request decides its tier, and without anything
// there is no certificate.
func TestTiers(t *testing.T) {
	t.Parallel()
	bad := imprint.NewSecret([]byte("not-the-token"))
	for name, test := range map[string]struct {
		ask      func(*world, *machine, imprint.InstanceID) imprint.Submission
		approval bool
		tier     imprint.Tier
		fails    imprint.Kind // 0: granted
	}{
		"host":           {func(_ *world, m *machine, id imprint.InstanceID) imprint.Submission { return m.up(id) }, false, imprint.TierHost, 0},
		"host, approval": {func(_ *world, m *machine, id imprint.InstanceID) imprint.Submission { return m.up(id) }, true, imprint.TierHost, imprint.Pending},
		"token": {func(w *world, m *machine, id imprint.InstanceID) imprint.Submission {
			return m.est(id, token(t, w, id))
		}, false, imprint.TierToken, 0},
		"token, approval": {func(w *world, m *machine, id imprint.InstanceID) imprint.Submission {
			return m.est(id, token(t, w, id))
		}, true, imprint.TierToken, imprint.Pending},
		"nothing": {func(_ *world, m *machine, id imprint.InstanceID) imprint.Submission {
			return m.est(id, imprint.Secret{})
		}, false, 0, imprint.Unauthorized},
		"nothing, approval": {func(_ *world, m *machine, id imprint.InstanceID) imprint.Submission {
			return m.est(id, imprint.Secret{})
		}, true, imprint.TierApproved, imprint.Pending},
		"wrong token": {func(w *world, m *machine, id imprint.InstanceID) imprint.Submission {
			token(t, w, id)
			return m.est(id, bad)
		}, false, 0, imprint.Unauthorized},
		"wrong token, approval":          {func(_ *world, m *machine, id imprint.InstanceID) imprint.Submission { return m.est(id, bad) }, true, 0, imprint.Unauthorized},
		"token where none was given out": {func(_ *world, m *machine, id imprint.InstanceID) imprint.Submission { return m.est(id, bad) }, false, 0, imprint.Unauthorized},
		"replaced token": {func(w *world, m *machine, id imprint.InstanceID) imprint.Submission {
			old := token(t, w, id)
			token(t, w, id)
			return m.est(id, old)
		}, false, 0, imprint.Unauthorized},
		"expired token": {func(w *world, m *machine, id imprint.InstanceID) imprint.Submission {
			secret := token(t, w, id)
			w.now = w.now.Add(time.Hour)
			return m.est(id, secret)
		}, false, 0, imprint.Unauthorized},
		"another host": {func(_ *world, m *machine, id imprint.InstanceID) imprint.Submission {
			s := m.up(id)
			s.Witness = other
			return s
		}, true, 0, imprint.Denied},
		"a host for a channel that is not its own": {func(_ *world, m *machine, id imprint.InstanceID) imprint.Submission {
			s := m.up(id)
			s.Channel = imprint.NetworkEST
			return s
		}, true, 0, imprint.Denied},
		"an unknown channel": {func(_ *world, m *machine, id imprint.InstanceID) imprint.Submission {
			s := m.up(id)
			s.Channel = "pigeon"
			return s
		}, true, 0, imprint.Invalid},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w, m := newWorld(), newMachine(t)
			id := w.reserve(t, func(s *imprint.Spec) { s.Policy.Approval = test.approval })
			s := test.ask(w, m, id)
			_, err := w.engine.Enrol(t.Context(), s)
			i := w.get(id)
			switch test.fails {
			case 0:
				if err != nil || w.signer.grants[0].Tier != test.tier || i.Enrolment.Claim.Tier != test.tier {
					t.Errorf("%v, %+v", err, i.Enrolment.Claim)
				}
			case imprint.Pending:
				wantKind(t, err, imprint.Pending)
				if len(w.signer.grants) != 0 || i.Enrolment.Claim.Tier != test.tier {
					t.Errorf("%d grants, claim %+v", len(w.signer.grants), i.Enrolment.Claim)
				}
			default:
				wantKind(t, err, test.fails)
				wantState(t, i, imprint.Reserved)
				e := w.last(id)
				if i.Enrolment.Claim != nil || e.Kind != imprint.EventRefused || e.Detail["key"] != string(m.id) || e.Channel != s.Channel {
					t.Errorf("claim %+v, event %+v", i.Enrolment.Claim, e)
				}
				if !strings.Contains(w.log.String(), "refused") {
					t.Error("not logged")
				}
			}
			if strings.Contains(w.log.String(), string(s.Token.Reveal())) && !s.Token.IsZero() {
				t.Error("the token is in the log")
			}
		})
	}
}

// TestSecondKey: another key with evidence ends the enrolment for both, in every
// open state; without evidence it changes nothing.
func TestSecondKey(t *testing.T) {
	t.Parallel()
	reach := map[imprint.State]func(*testing.T, *world, imprint.InstanceID, *machine, imprint.Submission){
		imprint.Claimed: func(t *testing.T, w *world, id imprint.InstanceID, m *machine, s imprint.Submission) {
			w.signer.fail = imprint.Errorf(imprint.Unavailable, "sign", "", "the signer is away")
			_, err := w.engine.Enrol(t.Context(), s)
			wantKind(t, err, imprint.Unavailable)
		},
		imprint.Issued: func(t *testing.T, w *world, id imprint.InstanceID, m *machine, s imprint.Submission) {
			if _, err := w.engine.Enrol(t.Context(), s); err != nil {
				t.Fatal(err)
			}
		},
		imprint.Confirmed: func(t *testing.T, w *world, id imprint.InstanceID, m *machine, s imprint.Submission) {
			if _, err := w.engine.Enrol(t.Context(), s); err != nil {
				t.Fatal(err)
			}
			w.enrol(t, id, m)
		},
		imprint.Closed: func(t *testing.T, w *world, id imprint.InstanceID, m *machine, s imprint.Submission) {
			if _, err := w.engine.Enrol(t.Context(), s); err != nil {
				t.Fatal(err)
			}
			w.enrol(t, id, m)
			if err := w.engine.Report(t.Context(), said(id, imprint.ReportReady, "", "")); err != nil {
				t.Fatal(err)
			}
		},
	}
	for state, get := range reach {
		for name, test := range map[string]struct {
			with  func(w *world, m *machine, id imprint.InstanceID, token imprint.Secret) imprint.Submission
			fails imprint.Kind
		}{
			"up the channel": {func(_ *world, m *machine, id imprint.InstanceID, _ imprint.Secret) imprint.Submission {
				s := m.up(id)
				s.Channel = imprint.VirtioSerial
				return s
			}, imprint.Contested},
			"with the token": {func(_ *world, m *machine, id imprint.InstanceID, token imprint.Secret) imprint.Submission {
				return m.est(id, token)
			}, imprint.Contested},
			"with the token, whatever it asks for": {func(_ *world, m *machine, id imprint.InstanceID, token imprint.Secret) imprint.Submission {
				return m.asking(t, &x509.CertificateRequest{DNSNames: []string{"evil.example.org"}}).est(id, token)
			}, imprint.Contested},
			"with an old token": {func(w *world, m *machine, id imprint.InstanceID, token imprint.Secret) imprint.Submission {
				w.now = w.now.Add(2 * time.Hour)
				return m.est(id, token)
			}, imprint.Unauthorized},
			"with a wrong token": {func(_ *world, m *machine, id imprint.InstanceID, _ imprint.Secret) imprint.Submission {
				return m.est(id, imprint.NewSecret([]byte("guess")))
			}, imprint.Unauthorized},
			"through another host": {func(_ *world, m *machine, id imprint.InstanceID, _ imprint.Secret) imprint.Submission {
				s := m.up(id)
				s.Witness = other
				return s
			}, imprint.Denied},
			"with the certificate of the first": {func(_ *world, m *machine, id imprint.InstanceID, _ imprint.Secret) imprint.Submission {
				s := m.est(id, imprint.Secret{})
				s.Generation = 1
				return s
			}, imprint.Denied},
		} {
			t.Run(string(state)+"/"+name, func(t *testing.T) {
				t.Parallel()
				w, first, second := newWorld(), newMachine(t), newMachine(t)
				id := w.reserve(t)
				secret := token(t, w, id)
				get(t, w, id, first, first.est(id, secret))
				wantState(t, w.get(id), state)
				before := w.get(id)
				signed, events := len(w.signer.grants), len(w.events(id, 0))
				s := test.with(w, second, id, secret)
				_, err := w.engine.Enrol(t.Context(), s)
				wantKind(t, err, test.fails)
				after, e := w.get(id), w.last(id)
				if len(w.signer.grants) != signed {
					t.Error("something was signed")
				}
				if test.fails != imprint.Contested {
					wantState(t, after, state)
					wantEvents(t, w.events(id, events), imprint.EventRefused)
					if len(w.store.revoked) != 0 || e.Detail["key"] != string(second.id) {
						t.Errorf("revoked %v, event %+v", w.store.revoked, e)
					}
					return
				}
				wantState(t, after, imprint.InDispute)
				wantEvents(t, w.events(id, events), imprint.EventContested)
				if c := before.Enrolment.Certificate; c == nil && len(w.store.revoked) != 0 || c != nil && (len(w.store.revoked) != 1 || w.store.revoked[c.Serial].Reason != 1) {
					t.Errorf("revoked %v, issued was %+v", w.store.revoked, c)
				}
				if e.Detail["firstKey"] != string(first.id) || e.Detail["secondKey"] != string(second.id) || e.Channel != s.Channel ||
					e.Detail["firstChannel"] != string(imprint.NetworkEST) || e.Detail["firstAt"] == "" {
					t.Errorf("event %+v", e)
				}
				for _, m := range []*machine{first, second, newMachine(t)} {
					_, err := w.engine.Enrol(t.Context(), m.up(id))
					wantKind(t, err, imprint.Contested)
				}
				// Of these, the first two keys are on the timeline already.
				wantEvents(t, w.events(id, events), imprint.EventContested, imprint.EventRefused, imprint.EventRefused)
			})
		}
	}
}

// TestStrangerCannotContestApproval: where an operator decides, nothing vouches
// for a first claim, and so nothing vouches for a second one either.
func TestStrangerCannotContestApproval(t *testing.T) {
	t.Parallel()
	w, m := newWorld(), newMachine(t)
	id := w.reserve(t, func(s *imprint.Spec) { s.Policy.Approval = true })
	_, err := w.engine.Enrol(t.Context(), m.up(id))
	wantKind(t, err, imprint.Pending)
	_, err = w.engine.Enrol(t.Context(), newMachine(t).est(id, imprint.Secret{}))
	wantKind(t, err, imprint.Denied)
	wantState(t, w.get(id), imprint.Claimed)
}

// TestTokenLife: the token is bound to the first key, which may use it until it
// confirms, however long that takes.
func TestTokenLife(t *testing.T) {
	t.Parallel()
	w, m := newWorld(), newMachine(t)
	id := w.reserve(t)
	secret := token(t, w, id)
	if _, err := w.engine.Enrol(t.Context(), m.est(id, secret)); err != nil {
		t.Fatal(err)
	}
	w.now = w.now.Add(2 * time.Hour)
	if _, err := w.engine.Enrol(t.Context(), m.est(id, secret)); err != nil {
		t.Errorf("a lost reply after the token's end: %v", err)
	}
	_, err := w.engine.Token(t.Context(), id, 0)
	wantKind(t, err, imprint.Conflict)
	w.enrol(t, id, m)
	_, err = w.engine.Enrol(t.Context(), m.est(id, secret))
	wantKind(t, err, imprint.Unauthorized)
	if _, err := w.engine.Enrol(t.Context(), m.est(id, imprint.Secret{})); err != nil {
		t.Errorf("the same key without a token: %v", err)
	}
}

func TestNamesInTheRequest(t *testing.T) {
	t.Parallel()
	uri := func(s string) []*url.URL {
		u, err := url.Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		return []*url.URL{u}
	}
	w, m := newWorld(), newMachine(t)
	id := w.reserve(t)
	own := "spiffe://imprint.example.net/tenant/default/instance/" + string(id) + "/generation/"
	cn := func(s string) *x509.CertificateRequest {
		r := &x509.CertificateRequest{}
		r.Subject.CommonName = s
		return r
	}
	for name, test := range map[string]struct {
		request *x509.CertificateRequest
		extra   string // "": it fits
	}{
		"none":                        {&x509.CertificateRequest{}, ""},
		"the name as CN":              {cn("web-1"), ""},
		"the DNS name as CN":          {cn("Web-1.example.net"), ""},
		"the id as CN":                {cn(string(id)), ""},
		"all":                         {&x509.CertificateRequest{DNSNames: []string{"WEB-1.example.net"}, IPAddresses: []net.IP{net.IPv4(10, 0, 0, 7)}, URIs: uri(own + "1")}, ""},
		"another CN":                  {cn("web-2"), "web-2"},
		"another DNS name":            {&x509.CertificateRequest{DNSNames: []string{"web-1.example.net", "web-2.example.net"}}, "web-2.example.net"},
		"a wildcard":                  {&x509.CertificateRequest{DNSNames: []string{"*.example.net"}}, "*.example.net"},
		"another address":             {&x509.CertificateRequest{IPAddresses: []net.IP{net.ParseIP("10.0.0.8")}}, "10.0.0.8"},
		"a URI":                       {&x509.CertificateRequest{URIs: uri("https://example.net/")}, "https://example.net/"},
		"the URI of the next one":     {&x509.CertificateRequest{URIs: uri(own + "2")}, "generation/2"},
		"mail":                        {&x509.CertificateRequest{EmailAddresses: []string{"root@example.net"}}, "root@example.net"},
		"something that breaks lines": {cn("web-1\r\nERROR"), "??ERROR"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := w.engine.Enrol(t.Context(), m.asking(t, test.request).up(id))
			if test.extra == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			wantKind(t, err, imprint.Invalid)
			if !strings.Contains(err.Error(), test.extra) {
				t.Errorf("error %q does not name %q", err, test.extra)
			}
		})
	}
}

// TestRefusedNamesClaimNothing: a request with other names does not bind its key.
func TestRefusedNamesClaimNothing(t *testing.T) {
	t.Parallel()
	w, m := newWorld(), newMachine(t)
	id := w.reserve(t)
	_, err := w.engine.Enrol(t.Context(), m.asking(t, &x509.CertificateRequest{DNSNames: []string{"x.example.org"}}).up(id))
	wantKind(t, err, imprint.Invalid)
	if e := w.last(id); e.Kind != imprint.EventRefused || !strings.Contains(e.Detail["reason"], "x.example.org") {
		t.Errorf("event %+v", e)
	}
	w.enrol(t, id, newMachine(t))
}

func TestStaleGeneration(t *testing.T) {
	t.Parallel()
	w, m := newWorld(), newMachine(t)
	id := w.reserve(t)
	if _, err := w.engine.Rebirth(t.Context(), id, "ann"); err != nil {
		t.Fatal(err)
	}
	s := m.up(id)
	s.Generation = 1
	_, err := w.engine.Enrol(t.Context(), s)
	wantKind(t, err, imprint.Conflict)
	r := said(id, imprint.ReportReady, "", "")
	r.Generation = 1
	reportErr := w.engine.Report(t.Context(), r)
	wantKind(t, reportErr, imprint.Conflict)
	for _, err := range []error{err, reportErr} {
		if !strings.Contains(err.Error(), "generation 1") || !strings.Contains(err.Error(), "generation 2") {
			t.Errorf("%q does not name both generations", err)
		}
	}
	wantState(t, w.get(id), imprint.Reserved)
}

// TestMisaddressed: what comes for another tenant, or under the label of another
// profile, meets no machine, and moves none.
func TestMisaddressed(t *testing.T) {
	t.Parallel()
	w, m := newWorld(), newMachine(t)
	id := w.reserve(t, func(s *imprint.Spec) { s.Policy.Profile = "machine" })
	for name, address := range map[string]func(*imprint.Submission){
		"another tenant":  func(s *imprint.Submission) { s.Tenant = "blue" },
		"another profile": func(s *imprint.Submission) { s.Profile = "router" },
	} {
		s := m.up(id)
		address(&s)
		_, err := w.engine.Enrol(t.Context(), s)
		t.Log(name)
		wantKind(t, err, imprint.NotFound)
		wantEvents(t, w.events(id, 0), imprint.EventReserved) // nothing that a stranger sends to another tenant's name
		wantState(t, w.get(id), imprint.Reserved)
	}
	s := m.up(id)
	s.Tenant, s.Profile = imprint.DefaultTenant, "machine"
	if _, err := w.engine.Enrol(t.Context(), s); err != nil {
		t.Fatal(err)
	}
}

func TestReusedKey(t *testing.T) {
	t.Parallel()
	w, m := newWorld(), newMachine(t)
	first, second := w.reserve(t), w.reserve(t, func(s *imprint.Spec) { s.Name = "web-2" })
	w.enrol(t, first, m)
	_, err := w.engine.Enrol(t.Context(), m.up(second))
	wantKind(t, err, imprint.Conflict)
	if !strings.Contains(err.Error(), "already belongs to another machine") || imprint.HintOf(err) == "" {
		t.Errorf("error %q, hint %q", err, imprint.HintOf(err))
	}
	wantState(t, w.get(second), imprint.Reserved)
	if e := w.last(second); e.Kind != imprint.EventRefused || e.Detail["key"] != string(m.id) {
		t.Errorf("event %+v", e)
	}
	if _, err := w.engine.Rebirth(t.Context(), first, "ann"); err != nil {
		t.Fatal(err)
	}
	_, err = w.engine.Enrol(t.Context(), m.up(first))
	wantKind(t, err, imprint.Conflict) // not even in its own next life
	w.enrol(t, first, newMachine(t))
}
