package daemon_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"imprint"
	"imprint/internal/daemon"
)

// startEtcd runs a stock etcd and returns its endpoint.
func startEtcd(t *testing.T) string {
	t.Helper()
	endpoint := fmt.Sprintf("http://127.0.0.1:%d", freePort(t))
	cmd := child(childEtcd, "--data-dir", filepath.Join(t.TempDir(), "etcd"),
		"--listen-client-urls", endpoint, "--advertise-client-urls", endpoint,
		"--listen-peer-urls", "http://127.0.0.1:0", "--log-level", "error", "--unsafe-no-fsync")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	return endpoint
}

// Two servers on one store decide about the same requests at once.
func TestTwoServersOnOneStore(t *testing.T) {
	t.Parallel()
	endpoint := startEtcd(t)
	sites := []*site{newSite(t), newSite(t)}
	bases := make([]string, 2)
	servers := make([]*serving, 2)
	for n, s := range sites {
		s.config.Name = fmt.Sprintf("host-%d", n+1)
		s.config.Store.Endpoints = []string{endpoint}
		bases[n] = s.checkIn(t)
	}
	sites[1].config.CheckIn.URLs = append(sites[1].config.CheckIn.URLs, bases[0])
	sites[0].config.CheckIn.URLs = append(sites[0].config.CheckIn.URLs, bases[1])
	// Both open what the other sealed, so they have the same key file.
	sites[1].config.KeyFile = filepath.Join(sites[0].config.Data, "kek")
	for n, s := range sites {
		servers[n] = s.serve(t)
	}
	bundle, err := servers[0].Bundle(t.Context(), imprint.DefaultTenant)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(bundle)
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()

	// One machine whose request both servers get, several times, and two machines
	// with the same token, one at each server.
	const each = 8
	held := map[imprint.Serial]imprint.KeyID{}
	var first *machine
	for n := range each {
		name := fmt.Sprintf("same-%d", n)
		servers[0].create(t, imprint.Spec{Name: imprint.InstanceName(name)}, nil)
		token, err := servers[n%2].Token(ctx, name, 0)
		if err != nil {
			t.Fatal(err)
		}
		m := newMachine(t, sites[0].config.Run, "")
		var group sync.WaitGroup
		for try := range 4 {
			group.Go(func() {
				if status, body := simpleEnroll(t, ctx, roots, bases[try%2], name, token, m); status != http.StatusOK {
					t.Errorf("%s at server %d: %d %s", name, try%2, status, body)
				}
			})
		}
		group.Wait()
		e := servers[1].get(t, name).Enrolment
		if e.State != imprint.Issued || e.Claim.Key != m.keyID() {
			t.Fatalf("%s is %s", name, e.State)
		}
		if m.leaf, err = x509.ParseCertificate(e.Certificate.DER); err != nil {
			t.Fatal(err)
		}
		held[e.Certificate.Serial] = m.keyID()
		first = m
	}
	for n := range each {
		name := fmt.Sprintf("two-%d", n)
		servers[1].create(t, imprint.Spec{Name: imprint.InstanceName(name)}, nil)
		token, err := servers[0].Token(ctx, name, 0)
		if err != nil {
			t.Fatal(err)
		}
		var group sync.WaitGroup
		for rival := range 2 {
			m := newMachine(t, sites[0].config.Run, "")
			group.Go(func() { simpleEnroll(t, ctx, roots, bases[rival], name, token, m) })
		}
		group.Wait()
		if e := servers[0].get(t, name).Enrolment; e.State != imprint.InDispute {
			t.Errorf("%s, which two keys claimed, is %s", name, e.State)
		}
	}
	for generation, keys := range logged(t, held, servers[0].Client, servers[1].Client) {
		if len(keys) > 1 {
			t.Errorf("%s was certified for %d keys", generation, len(keys))
		}
	}

	// Whatever one server issued the other one knows.
	for n, base := range bases {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, base+"/.well-known/imprint/v1/state", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := httpsClient(roots, first.leaf, first.key).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK || !strings.Contains(string(body), `"state":"confirmed"`) {
			t.Errorf("server %d answers the machine with %s %s", n, resp.Status, body)
		}
	}

	// What the one rotates the other can still open, also after a restart.
	spec := serialOnly("sealed")
	spec.Host = "host-2"
	spec.Params = []imprint.Param{{Name: "db-password", Visibility: imprint.Private}}
	i := servers[0].create(t, spec, map[string]imprint.Secret{"db-password": imprint.NewSecret([]byte("private-value"))})
	if _, err := servers[0].RotateSealing(ctx); err != nil {
		t.Fatal(err)
	}
	servers[1].stop()
	servers[1] = sites[1].serve(t)
	m := newMachine(t, sites[1].config.Run, i.ID)
	if err := m.request(ctx); err != nil {
		t.Fatal(err)
	}
	if b, err := m.Get(ctx, "imprint:param/db-password"); err != nil || string(b) != "private-value" {
		t.Errorf("the value after a rotation at the other server: %q, %v", b, err)
	}
}

func httpsClient(roots *x509.CertPool, leaf *x509.Certificate, key *ecdsa.PrivateKey) *http.Client {
	conf := &tls.Config{RootCAs: roots}
	if leaf != nil {
		conf.Certificates = []tls.Certificate{{Certificate: [][]byte{leaf.Raw}, PrivateKey: key}}
	}
	return &http.Client{Transport: &http.Transport{TLSClientConfig: conf, DisableKeepAlives: true}, Timeout: patience}
}

// simpleEnroll asks for a certificate as of RFC 7030 section 4.2.
func simpleEnroll(t *testing.T, ctx context.Context, roots *x509.CertPool, base, name string, token imprint.Secret, m *machine) (status int, body string) {
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, base+"/.well-known/est/simpleenroll",
		strings.NewReader(base64.StdEncoding.EncodeToString(m.csr())))
	if err != nil {
		t.Error(err)
		return 0, ""
	}
	req.Header.Set("Content-Type", "application/pkcs10")
	req.SetBasicAuth(name, string(token.Reveal()))
	resp, err := httpsClient(roots, nil, nil).Do(req)
	if err != nil {
		t.Error(err)
		return 0, ""
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b)
}

// A store that does not answer keeps the server from starting, in time. What
// happens when it goes away later is in internal/cli/testdata/etcd.txtar, and for
// the embedded one in TestEmbeddedStoreDies.
func TestTheStoreDoesNotAnswer(t *testing.T) {
	t.Parallel()
	site := newSite(t)
	site.config.Store.Endpoints = []string{fmt.Sprintf("http://127.0.0.1:%d", freePort(t))}
	began := time.Now()
	settings := site.settings(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	_, err := daemon.Open(ctx, settings, site.options())
	wantKind(t, err, imprint.Unavailable)
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("the answer took %v", took)
	}
	if _, err := os.Stat(filepath.Join(site.config.Data, "kek")); !os.IsNotExist(err) {
		t.Errorf("a key file was made for a store that nobody saw: %v", err)
	}
}
