//go:build bench

package bench

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// stepVersion is the peer's version, built from the module proxy.
const stepVersion = "github.com/smallstep/certificates/cmd/step-ca@v0.30.2"

// stepCA is a running step-ca with a JWK provisioner and its default database.
type stepCA struct {
	address string
	url     string
	roots   *x509.CertPool
	key     *ecdsa.PrivateKey // signs one-time tokens

	process *os.Process
}

// buildStepCA returns the peer's program, building it once into the cache.
func buildStepCA(t testing.TB) string {
	t.Helper()
	if path := os.Getenv("STEP_CA"); path != "" {
		return path
	}
	dir, err := filepath.Abs("../../.cache/bin")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "step-ca")
	if _, err := os.Stat(path); err == nil {
		return path
	}
	t.Log("building step-ca, which takes a minute or two")
	cmd := exec.Command("go", "install", stepVersion)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOBIN="+dir, "GOFLAGS=")
	cmd.Dir = t.TempDir() // outside of our module
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", cmd, err, out)
	}
	return path
}

// startStepCA configures and starts the peer until the test ends.
func startStepCA(t testing.TB) *stepCA {
	t.Helper()
	program := buildStepCA(t)
	dir := t.TempDir()
	rootKey, issuingKey, tokenKey := newKey(t), newKey(t), newKey(t)
	root := caTemplate("bench root", 1)
	rootDER := create(t, root, root, &rootKey.PublicKey, rootKey)
	issuingDER := create(t, caTemplate("bench issuing", 0), root, &issuingKey.PublicKey, rootKey)
	keyDER, err := x509.MarshalECPrivateKey(issuingKey)
	if err != nil {
		t.Fatal(err)
	}
	write := func(name, kind string, der []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	addr := freeAddress(t)
	config, err := json.Marshal(map[string]any{
		"root":     write("root.crt", "CERTIFICATE", rootDER),
		"crt":      write("issuing.crt", "CERTIFICATE", issuingDER),
		"key":      write("issuing.key", "EC PRIVATE KEY", keyDER),
		"address":  addr,
		"dnsNames": []string{"127.0.0.1"},
		"db":       map[string]string{"type": "badgerv2", "dataSource": filepath.Join(dir, "db")},
		"authority": map[string]any{
			"provisioners": []any{map[string]any{"type": "JWK", "name": "bench", "key": publicJWK(t, tokenKey)}},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	configFile := filepath.Join(dir, "ca.json")
	if err := os.WriteFile(configFile, config, 0o600); err != nil {
		t.Fatal(err)
	}
	s := &stepCA{address: addr, url: "https://" + addr, roots: x509.NewCertPool(), key: tokenKey}
	rootCert, err := x509.ParseCertificate(rootDER)
	if err != nil {
		t.Fatal(err)
	}
	s.roots.AddCert(rootCert)
	cmd := exec.Command(program, configFile)
	run(t, cmd)
	s.process = cmd.Process
	awaitTLS(t, s.roots, s.address)
	return s
}

// requests prepares n signing requests. Tokens last five minutes and have to be
// younger than the server.
func (s *stepCA) requests(t testing.TB, csrs []csr) []prepared {
	t.Helper()
	list := make([]prepared, len(csrs))
	for i, c := range csrs {
		body, err := json.Marshal(map[string]string{"csr": string(c.pem), "ott": s.token(t, c.name)})
		if err != nil {
			t.Fatal(err)
		}
		list[i], err = prepare("POST", s.url+"/1.0/sign", http.Header{"Content-Type": {"application/json"}}, body)
		if err != nil {
			t.Fatal(err)
		}
	}
	return list
}

// token is a JWT (RFC 7519) signed with ES256.
func (s *stepCA) token(t testing.TB, name string) string {
	t.Helper()
	now := time.Now()
	part := func(v any) string {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return base64.RawURLEncoding.EncodeToString(b)
	}
	signed := part(map[string]string{"alg": "ES256", "typ": "JWT", "kid": keyID}) + "." + part(map[string]any{
		"iss": "bench", "sub": name, "sans": []string{name}, "aud": s.url + "/1.0/sign", "jti": rand.Text(),
		"iat": now.Unix(), "nbf": now.Add(-time.Minute).Unix(), "exp": now.Add(4*time.Minute + 50*time.Second).Unix(),
	})
	sum := sha256.Sum256([]byte(signed))
	r, v, err := ecdsa.Sign(rand.Reader, s.key, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	sig := append(r.FillBytes(make([]byte, 32)), v.FillBytes(make([]byte, 32))...)
	return signed + "." + base64.RawURLEncoding.EncodeToString(sig)
}

const keyID = "bench"

func publicJWK(t testing.TB, key *ecdsa.PrivateKey) map[string]string {
	t.Helper()
	point, err := key.PublicKey.Bytes() // 0x04, x, y
	if err != nil {
		t.Fatal(err)
	}
	return map[string]string{
		"kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": keyID,
		"x": base64.RawURLEncoding.EncodeToString(point[1:33]),
		"y": base64.RawURLEncoding.EncodeToString(point[33:]),
	}
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func caTemplate(name string, pathLen int) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: big.NewInt(int64(pathLen) + 1), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, MaxPathLen: pathLen, MaxPathLenZero: pathLen == 0,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
}

func create(t testing.TB, template, parent *x509.Certificate, pub *ecdsa.PublicKey, key *ecdsa.PrivateKey) []byte {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, pub, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// csr is one machine's request.
type csr struct {
	name string
	der  []byte
	pem  []byte
}

// newCSRs makes n keys and requests, one each, as every machine has its own.
func newCSRs(t testing.TB, prefix string, n int) []csr {
	t.Helper()
	list := make([]csr, n)
	for i := range list {
		name := fmt.Sprintf("%s-%d.bench.internal", prefix, i)
		der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
			Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		}, newKey(t))
		if err != nil {
			t.Fatal(err)
		}
		list[i] = csr{name, der, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})}
	}
	return list
}
