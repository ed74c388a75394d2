package store

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/server/v3/etcdmain"
)

// childEtcd is a child of this test that is a stock etcd; its arguments are etcd's.
const childEtcd = "etcd"

func runEtcd() { etcdmain.Main(os.Args) }

// testCluster is three real etcd processes that speak TLS on loopback and ask
// for client certificates.
type testCluster struct {
	members [3]*member
	config  Cluster
}

type member struct {
	args []string
	cmd  *exec.Cmd // nil while it is stopped
}

func newCluster(t *testing.T) *testCluster {
	t.Helper()
	dir := t.TempDir()
	writeCertificates(t, dir)
	ca, cert, key := filepath.Join(dir, "ca.pem"), filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	c := &testCluster{config: Cluster{CA: ca, Cert: cert, Key: key, RequestTimeout: 2 * time.Second}}
	ports := freePorts(t, 6)
	var initial []string
	for n := range c.members {
		initial = append(initial, fmt.Sprintf("m%d=https://127.0.0.1:%d", n, ports[n]))
	}
	for n := range c.members {
		peer := fmt.Sprintf("https://127.0.0.1:%d", ports[n])
		client := fmt.Sprintf("https://127.0.0.1:%d", ports[3+n])
		c.config.Endpoints = append(c.config.Endpoints, client)
		c.members[n] = &member{args: []string{
			"--name", fmt.Sprintf("m%d", n), "--data-dir", filepath.Join(dir, fmt.Sprintf("m%d", n)),
			"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
			"--listen-client-urls", client, "--advertise-client-urls", client,
			"--initial-cluster", strings.Join(initial, ","),
			"--trusted-ca-file", ca, "--cert-file", cert, "--key-file", key, "--client-cert-auth",
			"--peer-trusted-ca-file", ca, "--peer-cert-file", cert, "--peer-key-file", key, "--peer-client-cert-auth",
			"--log-level", "error", "--election-timeout", "500", "--heartbeat-interval", "50", "--unsafe-no-fsync",
		}}
		c.members[n].start(t)
		t.Cleanup(c.members[n].kill)
	}
	return c
}

// open returns a store on the cluster, which the caller closes.
func (c *testCluster) open(t *testing.T) *Store {
	t.Helper()
	s, err := OpenCluster(t.Context(), c.config)
	if err != nil {
		t.Fatalf("OpenCluster: %v", err)
	}
	return s
}

func (m *member) start(t *testing.T) {
	t.Helper()
	m.cmd = exec.Command(os.Args[0], m.args...)
	m.cmd.Env = append(os.Environ(), childVariable+"="+childEtcd)
	if err := m.cmd.Start(); err != nil {
		t.Fatal(err)
	}
}

// kill ends the member as a crash would; it may be called again.
func (m *member) kill() {
	if m.cmd != nil {
		m.cmd.Process.Kill()
		m.cmd.Wait()
		m.cmd = nil
	}
}

// freePorts returns ports of the loopback address that nobody listens on.
func freePorts(t *testing.T, n int) []int {
	t.Helper()
	ports := make([]int, n)
	for i := range ports {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		ports[i] = l.Addr().(*net.TCPAddr).Port
	}
	return ports
}

// writeCertificates writes a CA and one certificate that serves for both ends.
func writeCertificates(t *testing.T, dir string) {
	t.Helper()
	issue := func(template, parent *x509.Certificate, key, parentKey *ecdsa.PrivateKey) []byte {
		der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, parentKey)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	write := func(name, kind string, der []byte) {
		b := pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "test"},
		NotBefore: ca.NotBefore, NotAfter: ca.NotAfter,
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	write("ca.pem", "CERTIFICATE", issue(ca, ca, caKey, caKey))
	write("cert.pem", "CERTIFICATE", issue(leaf, ca, key, caKey))
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	write("key.pem", "PRIVATE KEY", pkcs8)
}
