//go:build linux

package guest

import (
	"context"
	"crypto/x509"
	"errors"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"imprint"
)

func TestANewGenerationGetsANewKey(t *testing.T) {
	t.Parallel()
	host := newFakeHost(t)
	m := newMachine(t, host)
	m.mustRun()
	old := m.key()
	host.rebirth()

	// A crash while the old files are moved must not mix two lives either.
	a := m.agent()
	a.boundary = func(step string) error { return errCrash }
	if err := m.run(a); !errors.Is(err, errCrash) {
		t.Fatal(err)
	}
	m.mustRun()
	if m.key().Equal(old) {
		t.Error("generation 2 has the key of generation 1")
	}
	if host.state != imprint.Closed || host.issued != 2 {
		t.Errorf("the host is %s after %d certificates", host.state, host.issued)
	}
	for _, name := range []string{"key.pem", "cert.pem", "ca.pem", "identity.json"} {
		if m.read("etc/imprint/old/generation-1/"+name) == "" {
			t.Errorf("%s was not set aside", name)
		}
	}
}

func TestForeignAndStalePayloadsAreRefused(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		change func(*imprint.Payload)
		says   string
	}{
		"another machine": {func(p *imprint.Payload) { p.Instance, p.Name = otherID, "db-1" }, "it is for db-1 (" + string(otherID) + "), but this machine is web-1"},
		"an earlier life": {func(p *imprint.Payload) { p.Generation = 1 }, "it is for generation 1 of web-1, but this machine is generation 2 already"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			host := newFakeHost(t)
			host.payload.Generation = 2
			m := newMachine(t, host)
			m.mustRun()
			key := m.key()
			host.do(func() { tt.change(&host.payload) })
			err := m.run(m.agent())
			if imprint.KindOf(err) != imprint.Conflict || !strings.Contains(err.Error(), tt.says) || imprint.HintOf(err) == "" {
				t.Errorf("Run = %v", err)
			}
			if exitCode(err) != ExitRefused || !m.key().Equal(key) {
				t.Errorf("exit code %d, or the key changed", exitCode(err))
			}
		})
	}
}

func TestTheClockMovesForwardOnly(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		start time.Time
		sets  bool
		says  string
	}{
		"1970":        {time.Unix(100, 0), true, "moving it forward"},
		"right":       {epoch.Add(300 * time.Millisecond), false, ""},
		"an hour off": {epoch.Add(time.Hour), false, ""},
		"2100":        {time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC), false, "far ahead of imprint's 2026-03-01"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			host := newFakeHost(t)
			m := newMachine(t, host)
			m.now = tt.start
			m.mustRun() // also in 2100: the host's time is good enough to go on
			if sets := len(m.set) > 0; sets != tt.sets {
				t.Errorf("the clock was set to %v", m.set)
			}
			if m.now.Before(tt.start) {
				t.Errorf("the clock went back from %s to %s", tt.start, m.now)
			}
			if tt.sets && m.now.Before(epoch) {
				t.Errorf("the clock still says %s", m.now)
			}
			if !strings.Contains(m.said(), tt.says) {
				t.Errorf("nothing says %q:\n%s", tt.says, m.said())
			}
		})
	}
	t.Run("it cannot be set", func(t *testing.T) {
		t.Parallel()
		m := newMachine(t, newFakeHost(t))
		m.now = time.Unix(100, 0)
		a := m.agent()
		a.clock.set = func(time.Time) error { return errors.New("operation not permitted") }
		if err := m.run(a); err != nil {
			t.Error(err)
		}
		if !strings.Contains(m.said(), "cannot set the clock") {
			t.Errorf("%s", m.said())
		}
	})
}

func TestAWrongCertificateIsNotPutToUse(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		tamper func(*x509.Certificate)
		says   string
	}{
		"other names": {func(c *x509.Certificate) { c.DNSNames = []string{"db-1.example.org"} }, "it names"},
		"expired":     {func(c *x509.Certificate) { c.NotAfter = epoch.Add(-time.Second) }, "expired"},
		"another instance": {func(c *x509.Certificate) {
			c.URIs = []*url.URL{{Scheme: "spiffe", Host: "x", Path: "/tenant/default/instance/" + string(otherID) + "/generation/1"}}
		}, "does not name spiffe"},
		"server only": {func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }, "incompatible key usage"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			host := newFakeHost(t)
			host.tamper = tt.tamper
			m := newMachine(t, host)
			err := m.run(m.agent())
			if imprint.KindOf(err) != imprint.Invalid || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("Run = %v", err)
			}
			if _, err := os.Stat(filepath.Join(m.root, "etc/imprint/cert.pem")); err == nil {
				t.Error("the certificate was written")
			}
			if host.confirms != 0 {
				t.Error("the certificate was confirmed")
			}
		})
	}
}

func TestSideExitsAreExplained(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		state imprint.State
		kind  imprint.Kind
		says  string
	}{
		{imprint.InDispute, imprint.Contested, "another key claimed this machine: because of reasons"},
		{imprint.Revoked, imprint.Denied, "the enrolment is revoked: because of reasons"},
		{imprint.Expired, imprint.Denied, "the enrolment is expired: because of reasons"},
	} {
		host := newFakeHost(t)
		host.state, host.reason = tt.state, "because\nof reasons"
		m := newMachine(t, host)
		err := m.run(m.agent())
		if imprint.KindOf(err) != tt.kind || !strings.Contains(err.Error(), tt.says) || !strings.Contains(imprint.HintOf(err), "imprint rebirth web-1") {
			t.Errorf("%s: Run = %v", tt.state, err)
		}
	}
}

func TestWaitsForApprovalOverALiveChannel(t *testing.T) {
	t.Parallel()
	host := newFakeHost(t)
	host.approval = true
	m := newMachine(t, host)
	m.onNap = func() {
		if m.now.Sub(epoch) > time.Hour {
			host.do(func() { host.approval = false })
		}
	}
	m.mustRun()
	if n := strings.Count(m.said(), "waiting for an operator to approve web-1"); n != 1 {
		t.Errorf("said %d times that it waits:\n%s", n, m.said())
	}
}

// vanishingSource is a live channel whose host is away for the first tries.
type vanishingSource struct {
	hostSource
	away *int
}

func (s vanishingSource) Try(ctx context.Context) (*finding, error) {
	if *s.away > 0 {
		*s.away--
		return nil, imprint.Errorf(imprint.Unavailable, "ask", "the host", "nobody is there")
	}
	return s.hostSource.Try(ctx)
}

func TestWaitsUntilTheHostIsThere(t *testing.T) {
	t.Parallel()
	host := newFakeHost(t)
	m := newMachine(t, host)
	away := 5
	m.sources = []source{vanishingSource{hostSource{host: host, name: "port"}, &away}}
	a := m.agent()
	a.o.Wait = time.Minute
	if err := m.run(a); err != nil {
		t.Fatalf("%v\n%s", err, m.said())
	}
	if n := strings.Count(m.said(), "nobody is there"); n != 1 {
		t.Errorf("said %d times that nobody is there", n)
	}

	empty := newMachine(t, nil)
	empty.sources = []source{fileSource{filepath.Join(empty.root, "payload.json")}}
	a = empty.agent()
	a.o.Wait = time.Minute
	err := empty.run(a)
	if exitCode(err) != ExitNoPayload || imprint.HintOf(err) == "" {
		t.Errorf("without a payload: %v", err)
	}
	if waited := empty.now.Sub(epoch); waited < 50*time.Second || waited > time.Minute {
		t.Errorf("gave up after %s", waited)
	}
}

func TestAHostWithoutControlPlaneIsAskedAgain(t *testing.T) {
	t.Parallel()
	host := newFakeHost(t)
	host.away = true
	m := newMachine(t, host)
	naps := 0
	m.onNap = func() {
		if naps++; naps == 4 {
			host.do(func() { host.away = false })
		}
	}
	m.mustRun()
	if naps != 4 || !strings.Contains(m.said(), "the control plane cannot be reached; ask again later; trying again in 1.1s") {
		t.Errorf("%d pauses:\n%s", naps, m.said())
	}
}

func TestAChannelThatIsCutIsOpenedAgain(t *testing.T) {
	t.Parallel()
	for cut := 1000; cut < 5200; cut += 300 { // the whole enrolment has some 5 KB from the host
		host := newFakeHost(t)
		m := newMachine(t, host)
		m.sources = []source{hostSource{host: host, name: "port", cut: &cut}}
		a := m.agent()
		a.o.Wait = time.Minute
		at := cut
		if err := m.run(a); err != nil {
			t.Fatalf("cut after %d bytes: %v\n%s", at, err, m.said())
		}
		if host.state != imprint.Closed || host.issued != 1 {
			t.Errorf("cut after %d bytes: %s after %d certificates", at, host.state, host.issued)
		}
		cut = at
	}
}

func TestAnEnrolledMachineOutlivesOutages(t *testing.T) {
	t.Parallel()
	host := newFakeHost(t)
	m := newMachine(t, host)
	m.mustRun()
	cert := m.read("etc/imprint/cert.pem")

	away := 3
	m.sources = []source{vanishingSource{hostSource{host: host, name: "port"}, &away}}
	a := m.agent()
	usable := 0
	a.o.Enrolled = func() {
		if usable++; usable == 1 && away == 0 {
			t.Error("an enrolled machine waited for the outage to end before it said that it is")
		}
	}
	if err := m.run(a); err != nil {
		t.Fatalf("%v\n%s", err, m.said())
	}
	if usable == 0 || m.read("etc/imprint/cert.pem") != cert || host.issued != 1 {
		t.Errorf("reported %d times, %d certificates", usable, host.issued)
	}
}

func TestRenewsAtTwoThirds(t *testing.T) {
	t.Parallel()
	host := newFakeHost(t)
	m := newMachine(t, host)
	m.write("etc/imprint/enrolled.d/10-log", "#!/bin/sh\necho $IMPRINT_EVENT >>"+m.root+"/ran\n", 0o700)
	a := m.agent()
	a.o.Once = false
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	certs := []string{}
	a.o.Enrolled = func() {
		certs = append(certs, m.read("etc/imprint/cert.pem"))
		if len(certs) == 4 {
			cancel()
		}
	}
	if err := a.Run(ctx); err != nil {
		t.Fatal(err)
	}
	life := 7*24*time.Hour + time.Minute
	if took, want := m.now.Sub(epoch), 3*life*2/3; took < want-time.Hour || took > want+time.Hour {
		t.Errorf("three renewals took %s, want about %s", took, want)
	}
	slices.Sort(certs)
	if len(slices.Compact(certs)) != 4 || host.issued != 4 || host.confirms != 4 {
		t.Errorf("%d certificates issued, %d confirmed", host.issued, host.confirms)
	}
	if got := m.read("ran"); got != "enrolled\nrenewed\nrenewed\nrenewed\n" {
		t.Errorf("enrolled.d saw %q", got)
	}
}

func TestRenewalKeepsTheOldCertificateUntilTheNewIsVerified(t *testing.T) {
	t.Parallel()
	host := newFakeHost(t)
	m := newMachine(t, host)
	m.mustRun()
	cert := m.read("etc/imprint/cert.pem")
	m.advance(5 * 24 * time.Hour)
	host.tamper = func(c *x509.Certificate) { c.DNSNames = []string{"db-1.example.org"} }
	if _, _, err := m.agent().Renew(context.Background()); imprint.KindOf(err) != imprint.Invalid {
		t.Errorf("Renew = %v", err)
	}
	if m.read("etc/imprint/cert.pem") != cert {
		t.Error("a wrong certificate replaced the good one")
	}
}

func TestRenewalJitterStaysNearTwoThirds(t *testing.T) {
	t.Parallel()
	leaf := &x509.Certificate{NotBefore: epoch, NotAfter: epoch.Add(300 * time.Hour)}
	low, high := renewAt(leaf, 0), renewAt(leaf, 0.9999)
	if low.Before(epoch.Add(184*time.Hour)) || high.After(epoch.Add(216*time.Hour)) || !low.Before(high) {
		t.Errorf("between %s and %s after the start", low.Sub(epoch), high.Sub(epoch))
	}
}

func TestTwoAgentsDoNotWorkAtOnce(t *testing.T) {
	t.Parallel()
	m := newMachine(t, newFakeHost(t))
	release, err := m.agent().lock()
	if err != nil {
		t.Fatal(err)
	}
	if err := m.run(m.agent()); imprint.KindOf(err) != imprint.Conflict {
		t.Errorf("Run beside another = %v", err)
	}
	release()
	m.mustRun()
}

func TestParametersThatAreGoneAreRemoved(t *testing.T) {
	t.Parallel()
	host := newFakeHost(t)
	m := newMachine(t, host)
	m.mustRun()
	host.do(func() {
		delete(host.params, "color")
		host.params["db-key"] = fakeParam{imprint.SecretOnly, ""} // to be given again
	})
	m.mustRun()
	entries, err := os.ReadDir(filepath.Join(m.root, "run/imprint/params"))
	if err != nil || len(entries) != 1 || entries[0].Name() != "db-url" {
		t.Errorf("params = %v, %v", entries, err)
	}
	if index := m.read("run/imprint/params.json"); !strings.Contains(index, `"db-key"`) || strings.Contains(index, "canary") {
		t.Errorf("index = %s", index)
	}
	if _, err := m.agent().OpenParam(context.Background(), "db-key"); imprint.KindOf(err) != imprint.NotFound {
		t.Errorf("a value that imprint does not have: %v", err)
	}
	if got, err := m.agent().OpenParam(context.Background(), "db-url"); err != nil || string(got.Reveal()) != "postgres://private-canary" {
		t.Errorf("db-url live = %v", err)
	}
}

// The user data is read with the enrolled key, over whichever link there is.
func TestUserData(t *testing.T) {
	t.Parallel()
	const userData = "#cloud-config\n# canary\n"
	live := newFakeHost(t)
	m := newMachine(t, live)
	m.mustRun()
	network := newFakeHost(t)
	oneway, agent := oneWay(t, network, newFakeEndpoint(t, network))
	if err := oneway.run(agent()); err != nil {
		t.Fatal(err)
	}
	for link, c := range map[string]struct {
		host  *fakeHost
		agent *Agent
	}{"live": {live, m.agent()}, "est": {network, agent()}} {
		if _, err := c.agent.OpenUserData(t.Context()); imprint.KindOf(err) != imprint.NotFound {
			t.Errorf("%s: none: %v", link, err)
		}
		c.host.do(func() { c.host.userData = userData })
		if got, err := c.agent.OpenUserData(t.Context()); err != nil || string(got.Reveal()) != userData {
			t.Errorf("%s: %q, %v", link, got.Reveal(), err)
		}
	}
	stranger := newFakeHost(t) // sealed to another key
	live.do(func() { live.spki = stranger.ca.issuing.RawSubjectPublicKeyInfo })
	if _, err := m.agent().OpenUserData(t.Context()); imprint.KindOf(err) != imprint.Invalid {
		t.Errorf("sealed to another key: %v", err)
	}
}
