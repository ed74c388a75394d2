package daemon_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"imprint"
	"imprint/internal/daemon"
)

// sharedSecret is metadata_proxy_shared_secret.
const sharedSecret = "0123456789abcdef0123456789abcdef"

// agent is Neutron's metadata agent.
type agent struct {
	base   string
	client *http.Client
}

// withNeutron configures the endpoint for Neutron's agents and returns one that
// has a certificate, and one that has none.
func (s *site) withNeutron(t *testing.T) (with, without *agent) {
	t.Helper()
	s.config.Neutron, with, without = newNeutron(t)
	return with, without
}

// newNeutron returns an endpoint's configuration, an agent that has a certificate
// for it, and one that has none.
func newNeutron(t *testing.T) (c daemon.NeutronConfig, with, without *agent) {
	t.Helper()
	dir := t.TempDir()
	write := func(name string, mode os.FileMode, content []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, content, mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	ca := newLeaf(t, "agents' CA", nil)
	own, client := newLeaf(t, "imprint", ca), newLeaf(t, "agent", ca)
	key, err := x509.MarshalPKCS8PrivateKey(own.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	port := freePort(t)
	c = daemon.NeutronConfig{
		Listen:     fmt.Sprintf("127.0.0.1:%d", port),
		SecretFile: write("secret", 0o600, []byte(sharedSecret+"\n")),
		Cert:       write("cert.pem", 0o644, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: own.Leaf.Raw})),
		Key:        write("key.pem", 0o600, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})),
		ClientCA:   write("ca.pem", 0o644, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Leaf.Raw})),
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca.Leaf)
	dialling := func(certificates ...tls.Certificate) *agent {
		transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: "imprint", Certificates: certificates}}
		t.Cleanup(transport.CloseIdleConnections)
		return &agent{fmt.Sprintf("https://127.0.0.1:%d", port), &http.Client{Timeout: patience, Transport: transport}}
	}
	return c, dialling(*client), dialling()
}

// newLeaf makes a certificate, of the issuer or of itself.
func newLeaf(t *testing.T, name string, issuer *tls.Certificate) *tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	if issuer == nil {
		template.IsCA, template.BasicConstraintsValid, template.KeyUsage, template.DNSNames = true, true, x509.KeyUsageCertSign, nil
		issuer = &tls.Certificate{PrivateKey: key, Leaf: template}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, issuer.Leaf, key.Public(), issuer.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// ask passes a guest's request on, with who the guest is and the secret's proof.
func (a *agent) ask(t *testing.T, secret string, id imprint.InstanceID, project, method, path, body string) (status int, reply string, err error) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, a.base+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	mac := hmac.New(sha256.New, []byte(secret))
	io.WriteString(mac, string(id))
	for field, value := range map[string]string{
		"X-Forwarded-For": "192.0.2.10", "X-Instance-ID": string(id), "X-Tenant-ID": project, "X-Instance-ID-Signature": hex.EncodeToString(mac.Sum(nil)),
	} {
		r.Header.Set(field, value)
	}
	resp, err := a.client.Do(r)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), err
}

// find waits until the guest is served: the host hears of it a moment after the
// reservation.
func (a *agent) find(t *testing.T, id imprint.InstanceID, project string) {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		status, reply, err := a.ask(t, sharedSecret, id, project, "GET", "/openstack", "")
		if err == nil && status == 200 {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("status %d, %q, %v", status, reply, err)
		}
	}
}

// TestNeutron runs a server that Neutron's metadata agents ask: each guest reads
// its own, nothing that is private, and what it says is on the timeline.
func TestNeutron(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	with, without := s.withNeutron(t)
	s.config.Tenancy = append(s.config.Tenancy, daemon.TenantConfig{Name: novaProject, Domains: []string{"cloud.internal"}})
	server := s.serve(t)
	spec := func(name imprint.InstanceName, channels ...imprint.ChannelKind) imprint.Spec {
		return imprint.Spec{
			Name: name, DNSNames: []string{string(name) + ".lab.internal"}, Channels: channels, UserData: "#cloud-config\n# of " + string(name) + "\n",
			Params: []imprint.Param{{Name: "motd", Visibility: imprint.Public, Value: "hello"}, {Name: "token", Visibility: imprint.Private}},
		}
	}
	private := func() map[string]imprint.Secret {
		return map[string]imprint.Secret{"token": imprint.NewSecret([]byte("a private value"))}
	}
	one := server.create(t, spec("web-1", imprint.Neutron, imprint.Serial2), private()).ID
	two := server.create(t, spec("web-2", imprint.Neutron, imprint.Serial2), private()).ID
	other := server.create(t, spec("db-1", imprint.Serial2), private()).ID
	const project, metaData, password = "default", "/openstack/latest/meta_data.json", "/openstack/latest/password"
	with.find(t, one, project)
	with.find(t, two, project)
	want := func(secret string, id imprint.InstanceID, project, method, path, body string, status int, text string) {
		t.Helper()
		got, reply, err := with.ask(t, secret, id, project, method, path, body)
		if err != nil || got != status || !strings.Contains(reply, text) || strings.Contains(reply, "a private value") {
			t.Errorf("%s %s: status %d, %q, %v; want %d with %q", method, path, got, reply, err, status, text)
		}
	}
	get := func(id imprint.InstanceID, path string, status int, text string) {
		t.Helper()
		want(sharedSecret, id, project, "GET", path, "", status, text)
	}

	// Who asks, and for whom.
	get(one, metaData, 200, `"name":"web-1"`)
	get(two, metaData, 200, `"name":"web-2"`)
	want("another secret, as long as it is", one, project, "GET", metaData, "", 403, "Invalid proxy request signature.")
	want(sharedSecret, one, "evil", "GET", metaData, "", 404, "")
	want(sharedSecret, other, project, "GET", metaData, "", 404, "")
	if status, reply, err := without.ask(t, sharedSecret, one, project, "GET", metaData, ""); err == nil {
		t.Errorf("without a client certificate: %d %q", status, reply)
	}

	// What is read, and until when.
	get(one, "/imprint/v1/param/motd", 200, "hello")
	get(one, "/imprint/v1/param/token", 403, "")
	want(sharedSecret, one, project, "PUT", "/imprint/v1/ready", "ready", 403, "")
	get(one, "/openstack/latest/user_data", 200, "# of web-1")
	want(sharedSecret, one, project, "POST", "/imprint/v1/phone-home", "hostname=web-1", 200, "")
	get(one, "/openstack/latest/user_data", 404, "")
	get(two, "/openstack/latest/user_data", 200, "# of web-2")

	// A password, once.
	get(one, password, 200, "")
	want(sharedSecret, one, project, "POST", password, "bm90IGEgc2VjcmV0", 200, "")
	want(sharedSecret, one, project, "POST", password, "YW5vdGhlcg==", 409, "")
	get(one, password, 200, "bm90IGEgc2VjcmV0")

	lines := []string{
		"served openstack  any process, or whoever forges its address",
		"refused  imprint/v1/param/token: read token: a private value is not sent in the clear over neutron",
		"refused  imprint/v1/ready: nobody behind Neutron is known to be root",
		"home   any process, or whoever forges its address", "password",
	}
	timeline := ""
	missing := func() string {
		d, err := server.Describe(t.Context(), "web-1")
		if err != nil {
			t.Fatal(err)
		}
		if len(d.Ports) != 2 || d.Ports[0].Channel != imprint.Neutron || d.Ports[0].Problem != "" || d.Ports[0].Socket != "" {
			t.Fatalf("ports %+v", d.Ports)
		}
		timeline = ""
		for _, e := range d.Timeline {
			timeline += fmt.Sprintln(e.Kind, e.Detail["what"], e.Detail["reason"], e.Detail["from"])
		}
		for _, line := range lines {
			if !strings.Contains("\n"+timeline, "\n"+line) {
				return line
			}
		}
		return ""
	}
	for end := time.Now().Add(patience); missing() != ""; time.Sleep(5 * time.Millisecond) { // accesses are reported behind the reply
		if time.Now().After(end) {
			t.Fatalf("the timeline lacks %q:\n%s", missing(), timeline)
		}
	}
	if d, err := server.Describe(t.Context(), "web-1"); err != nil || d.Instance.Enrolment.State == imprint.Closed || strings.Contains(s.log.String(), sharedSecret) {
		t.Errorf("%+v, %v, or the log has the secret", d.Instance.Enrolment, err)
	}

	asNova(t, server, with)

	// The endpoint ends with the server.
	server.stop()
	if status, _, err := with.ask(t, sharedSecret, one, project, "GET", metaData, ""); err == nil {
		t.Errorf("after the end: %d", status)
	}
}

// novaProject is the ID of a project in Nova.
const novaProject = "6f70656e737461636b20342065766572"

// asNova creates instances as Nova knows them and asks as its guests would: with
// Nova's UUID and its project.
func asNova(t *testing.T, server *serving, a *agent) {
	t.Helper()
	const id, sibling imprint.InstanceID = "b0b6a9de-3f5c-4c52-9d3c-8a9de3cf12a7", "1f0e6c57-55d2-4b9b-8a60-70dd7a4ce3a5"
	spec := func(name imprint.InstanceName) imprint.Spec {
		return imprint.Spec{
			Name: name, Tenant: novaProject, DNSNames: []string{string(name) + ".cloud.internal"}, Channels: []imprint.ChannelKind{imprint.Neutron},
			UserData: "#cloud-config\n# of " + string(name) + "\n", SSHKeys: []string{"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIIClClga4j7TmeFRB7jhdbnbZbJawYCd+Iv3clQzbvOs nova@example"},
		}
	}
	for name, id := range map[imprint.InstanceName]imprint.InstanceID{"nova-1": id, "nova-2": sibling} {
		created, err := server.CreateAs(t.Context(), id, spec(name), nil, false)
		if err != nil || created.Instance.ID != id {
			t.Fatalf("%+v, %v", created, err)
		}
		a.find(t, id, novaProject)
	}
	for path, text := range map[string]string{
		"/openstack/latest/meta_data.json":            `"uuid":"` + string(id) + `"`,
		"/openstack/2012-08-10/meta_data.json":        `"hostname":"nova-1.cloud.internal"`,
		"/openstack/latest/user_data":                 "# of nova-1",
		"/latest/meta-data/instance-id":               "i-b0b6a9de",
		"/2009-04-04/meta-data/hostname":              "nova-1.cloud.internal",
		"/latest/meta-data/public-keys/0/openssh-key": "nova@example",
		"/2009-04-04/user-data":                       "# of nova-1",
		"/imprint/v1/payload":                         string(id),
	} {
		if status, reply, err := a.ask(t, sharedSecret, id, novaProject, "GET", path, ""); err != nil || status != 200 || !strings.Contains(reply, text) || strings.Contains(reply, "nova-2") {
			t.Errorf("%s: status %d, %q, %v; want %q", path, status, reply, err, text)
		}
	}
	if status, reply, err := a.ask(t, sharedSecret, sibling, novaProject, "GET", "/latest/meta-data/hostname", ""); err != nil || status != 200 || reply != "nova-2.cloud.internal" {
		t.Errorf("the sibling: status %d, %q, %v", status, reply, err)
	}
	if status, reply, err := a.ask(t, "another secret, as long as it is", id, novaProject, "GET", "/latest/meta-data/hostname", ""); err != nil || status != 403 {
		t.Errorf("signed with another secret: %d %q, %v", status, reply, err)
	}
	if status, reply, err := a.ask(t, sharedSecret, id, "default", "GET", "/latest/meta-data/hostname", ""); err != nil || status != 404 {
		t.Errorf("as another project: %d %q, %v", status, reply, err)
	}

	// The identifier is this machine's, for another tenant too, and for ever; a
	// rebuild is its next life.
	taken := func(tenant imprint.TenantName, name imprint.InstanceName) {
		t.Helper()
		again := spec(name)
		again.Tenant, again.DNSNames = tenant, nil
		if _, err := server.CreateAs(t.Context(), id, again, nil, false); imprint.KindOf(err) != imprint.Exists || !strings.Contains(err.Error(), string(id)) {
			t.Errorf("%s/%s: %v", tenant, name, err)
		}
	}
	taken("default", "evil-1")
	if i, err := server.Rebirth(t.Context(), string(id)); err != nil || i.ID != id || i.Generation != 2 {
		t.Errorf("reborn: %+v, %v", i, err)
	}
	if err := server.Delete(t.Context(), string(id)); err != nil {
		t.Fatal(err)
	}
	taken(novaProject, "nova-1")
	until(t, "the deleted one to be served no more", func() bool {
		status, _, err := a.ask(t, sharedSecret, id, novaProject, "GET", "/openstack/latest/meta_data.json", "")
		return err == nil && status == 404
	})
}

// On a private network the agents need no TLS, and the signature all the same.
func TestNeutronOnAPrivateNetwork(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.withNeutron(t)
	n := &s.config.Neutron
	n.Cert, n.Key, n.ClientCA, n.PrivateNetwork = "", "", "", true
	server := s.serve(t)
	id := server.create(t, imprint.Spec{Name: "web-1", Channels: []imprint.ChannelKind{imprint.Neutron}}, nil).ID
	a := &agent{"http://" + n.Listen, &http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}}
	a.find(t, id, "default")
	if status, reply, err := a.ask(t, "another secret, as long as it is", id, "default", "GET", "/openstack", ""); err != nil || status != 403 {
		t.Errorf("status %d, %q, %v", status, reply, err)
	}
}

// What is wrong with the endpoint's files is said before anything listens.
func TestNeutronThatCannotBe(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change func(t *testing.T, c *daemon.NeutronConfig)
		kind   imprint.Kind
		text   string
	}{
		"no such secret":     {func(_ *testing.T, c *daemon.NeutronConfig) { c.SecretFile += ".gone" }, imprint.Invalid, "read neutron.secretFile: open "},
		"a readable secret":  {func(t *testing.T, c *daemon.NeutronConfig) { chmod(t, c.SecretFile, 0o640) }, imprint.Denied, "mode 0640 lets others read the key"},
		"a short secret":     {func(t *testing.T, c *daemon.NeutronConfig) { fill(t, c.SecretFile, "short\n") }, imprint.Invalid, "it has 5 bytes; it needs at least 16"},
		"a blank secret":     {func(t *testing.T, c *daemon.NeutronConfig) { fill(t, c.SecretFile, strings.Repeat(" \n", 40)) }, imprint.Invalid, "it has 0 bytes"},
		"an endless secret":  {func(_ *testing.T, c *daemon.NeutronConfig) { c.SecretFile = "/dev/zero" }, imprint.Denied, "lets others read"},
		"too long a secret":  {func(t *testing.T, c *daemon.NeutronConfig) { fill(t, c.SecretFile, strings.Repeat("x", 5000)) }, imprint.Invalid, "has more than 4096 bytes"},
		"no such key":        {func(_ *testing.T, c *daemon.NeutronConfig) { c.Key += ".gone" }, imprint.Invalid, "read neutron.cert and neutron.key: open "},
		"an empty client CA": {func(t *testing.T, c *daemon.NeutronConfig) { fill(t, c.ClientCA, "") }, imprint.Invalid, "ca.pem holds no certificate in PEM"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			s.withNeutron(t)
			c.change(t, &s.config.Neutron)
			d, err := daemon.Open(t.Context(), s.settings(t), s.options())
			if err == nil {
				d.Close()
			}
			if imprint.KindOf(err) != c.kind || !strings.Contains(err.Error(), c.text) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%v", err)
			}
		})
	}
}

func chmod(t *testing.T, file string, mode os.FileMode) {
	t.Helper()
	if err := os.Chmod(file, mode); err != nil {
		t.Fatal(err)
	}
}

func fill(t *testing.T, file, content string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}
