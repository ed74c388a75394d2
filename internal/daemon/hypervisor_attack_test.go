package daemon_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"imprint"
	"imprint/internal/guest"
	"imprint/internal/hostapi"
)

// identity lets an agent of this process join the site with a payload.
func (s *site) identity(t *testing.T, payload string) *guest.Identity {
	t.Helper()
	agent := guest.New(guest.Options{
		Root: memoryDir(t), PayloadFile: payload, Once: true, IdentityOnly: true, Wait: patience, Dial: s.dialCheckIn,
	}, guest.NewConsole(s.log))
	if err := agent.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	id, err := agent.Identity()
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func (s *site) dialCheckIn(ctx context.Context, network, _ string) (net.Conn, error) {
	return (&net.Dialer{}).DialContext(ctx, network, s.config.CheckIn.Listen)
}

// hostClient is the host API for whoever has id.
func (s *site) hostClient(id *guest.Identity) *hostapi.Client {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(id.Payload.CA))
	return hostapi.NewClient(hostapi.ClientConfig{
		URLs: id.Payload.CheckIn, Roots: roots, Dial: s.dialCheckIn,
		Certificate: func() (*tls.Certificate, error) { return &id.Certificate, nil },
	})
}

// What whoever stole a hypervisor's certificate can do: nothing to the instances
// of other hosts.
func TestStolenHostCertificate(t *testing.T) {
	t.Parallel()
	site := newSite(t)
	site.withHosts(t)
	server := site.start(t, nil)
	private := map[string]imprint.Secret{"db-password": imprint.NewSecret([]byte("private value"))}
	ids := map[string]imprint.InstanceID{}
	for name, host := range map[string]string{"on-server": "host-1", "on-hv2": hypervisorName, "on-hv3": "hv3.lab.internal"} {
		created, err := server.Create(t.Context(), placedOn(name, host), private, false)
		if err != nil {
			t.Fatal(err)
		}
		ids[name] = created.Instance.ID
	}
	site.joinFile(t, "hv3.lab.internal")
	stolen := site.identity(t, site.joinFile(t, hypervisorName))
	thief := site.hostClient(stolen)

	// It sees its own, and no more.
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	seen := map[imprint.InstanceID]bool{}
	thief.Watch(ctx, hostapi.Position{}, func(n hostapi.Notice) error {
		if n.Instance != nil {
			seen[n.Instance.ID] = true
		}
		if n.Synced {
			cancel()
		}
		return nil
	})
	if len(seen) != 1 || !seen[ids["on-hv2"]] {
		t.Errorf("it sees %v of %v", seen, ids)
	}
	if v, err := thief.Param(t.Context(), ids["on-hv2"], "db-password"); err != nil || !v.Equal(private["db-password"]) {
		t.Errorf("its own instance's value: %v", err)
	}
	m := newMachine(t, site.config.Run, ids["on-server"])
	for _, name := range []string{"on-server", "on-hv3"} {
		before, err := server.Get(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		id := ids[name]
		if v, err := thief.Param(t.Context(), id, "db-password"); imprint.KindOf(err) != imprint.NotFound || len(v.Reveal()) != 0 {
			t.Errorf("%s: the value: %v", name, err)
		}
		inst, err := thief.Enrol(t.Context(), imprint.Submission{Instance: id, Channel: imprint.Serial2, CSR: m.csr(), Witness: before.Spec.Host})
		if imprint.KindOf(err) != imprint.Denied || inst != nil {
			t.Errorf("%s: enrolled: %v, %v", name, inst, err)
		}
		for _, kind := range []imprint.ReportKind{imprint.ReportDelivered, imprint.ReportReady, imprint.ReportRead, imprint.ReportPassword, imprint.ReportConfirmed, imprint.ReportRefused} {
			err := thief.Report(t.Context(), imprint.Report{
				Instance: id, Generation: 1, Channel: imprint.Serial2, Kind: kind, Name: "db-password", Data: []byte("x"), Witness: before.Spec.Host, ID: "x", Serial: "1",
			})
			if imprint.KindOf(err) != imprint.Denied {
				t.Errorf("%s: report %s: %v", name, kind, err)
			}
		}
		after, err := server.Get(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		if after.Enrolment.State != before.Enrolment.State || after.Enrolment.Claim != nil {
			t.Errorf("%s is %+v", name, after.Enrolment)
		}
		events, err := server.Timeline(t.Context(), name, 0)
		if err != nil {
			t.Fatal(err)
		}
		told := false
		for _, e := range events {
			told = told || e.Kind == imprint.EventRefused && strings.Contains(e.Detail["reason"], hypervisorName)
		}
		if !told {
			t.Errorf("the timeline of %s does not name the host that tried: %+v", name, events)
		}
	}

	// The operator's answer is for now, on the connection that is open.
	if _, err := server.Revoke(t.Context(), "hosts/hv2-lab-internal", "stolen"); err != nil {
		t.Fatal(err)
	}
	if _, err := thief.Param(t.Context(), ids["on-hv2"], "db-password"); imprint.KindOf(err) != imprint.Unauthorized {
		t.Errorf("after its revocation: %v", err)
	}
}

// The host API is there for hypervisors' certificates, under their own name.
func TestWhoReachesTheHostAPI(t *testing.T) {
	t.Parallel()
	site := newSite(t)
	site.withHosts(t)
	server := site.start(t, nil)
	host := site.identity(t, site.joinFile(t, hypervisorName))
	if _, err := server.Create(t.Context(), imprint.Spec{Name: "web-1", Channels: []imprint.ChannelKind{imprint.NetworkEST}}, nil, false); err != nil {
		t.Fatal(err)
	}
	payload := filepath.Join(t.TempDir(), "payload.json")
	if out, err := site.cli("payload", "web-1", "--out", payload); err != nil {
		t.Fatal(out)
	}
	machine := site.identity(t, payload)

	const hosts, machines = "imprint-hosts.lab.internal", "localhost"
	get := func(name string, roots *guest.Identity, cert *guest.Identity, path string) int {
		pool := x509.NewCertPool()
		pool.AppendCertsFromPEM([]byte(roots.Payload.CA))
		config := &tls.Config{RootCAs: pool, ServerName: name}
		if cert != nil {
			config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert.Certificate, nil }
		}
		transport := &http.Transport{TLSClientConfig: config, DialContext: site.dialCheckIn, DisableKeepAlives: true}
		client := http.Client{Transport: transport, Timeout: patience}
		resp, err := client.Get("https://" + name + path)
		if err != nil {
			return 0 // not even a connection
		}
		defer resp.Body.Close()
		io.CopyN(io.Discard, resp.Body, 1)
		return resp.StatusCode
	}
	const path = hostapi.Prefix + "watch?from=0"
	for what, got := range map[string]int{
		"nobody":                              get(hosts, host, nil, path),
		"a machine, at the hosts' name":       get(hosts, host, machine, path),
		"a machine, at its own":               get(machines, machine, machine, path),
		"a host, at the machines' name":       get(machines, machine, host, path),
		"a host, by a path that leads around": get(hosts, host, host, "/crl/.."+hostapi.Prefix+"../v1/watch2"),
	} {
		if got != 0 && got != http.StatusNotFound && got != http.StatusForbidden {
			t.Errorf("%s: %d", what, got)
		}
	}
	if got := get(hosts, host, host, path); got != http.StatusOK {
		t.Errorf("a host: %d", got)
	}
	// To everything else a hypervisor is a machine of its tenant.
	if got := get(hosts, host, host, "/.well-known/imprint/v1/state"); got != http.StatusOK {
		t.Errorf("a host's own state: %d", got)
	}
}
