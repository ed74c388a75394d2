//go:build interop

// Package interop shows imprint to the programs of others: stock EST clients.
// Its tests need those programs and skip, by name of the package to install,
// without them.
package interop

import (
	"encoding/pem"
	"strings"
	"testing"

	"imprint"
	"imprint/test/need"
)

// strongSwan returns its pki tool, which speaks EST with the TLS of
// libcharon-extra-plugins and elliptic curves by OpenSSL.
func strongSwan(t *testing.T) string {
	t.Helper()
	program := need.Program(t, "pki", "strongswan-pki")
	need.File(t, "/usr/lib/ipsec/libtls.so.0", "libcharon-extra-plugins")
	need.File(t, "/usr/lib/ipsec/plugins/libstrongswan-openssl.so", "libstrongswan-standard-plugins")
	return program
}

// TestESTStrongSwan: strongSwan's pki learns the CA, enrols and renews.
func TestESTStrongSwan(t *testing.T) {
	t.Parallel()
	pki, openssl := strongSwan(t), need.Program(t, "openssl", "openssl")
	s := newESTSite(t)
	inst, token := s.reserve(t, "web-1", nil)

	// --estca checks that the root it gets is the one it trusts already.
	s.must(t, pki, "--estca", "--url", s.url, "--cacert", s.root, "--caout", s.path("ca.der"), "--outform", "der")

	key := s.save(t, "key.der", pki, "--gen", "--type", "ecdsa", "--size", "256")
	csr := s.save(t, "csr.der", pki, "--req", "--in", key, "--type", "priv", "--dn", "CN=web-1", "--san", "web-1.lab.internal")
	enrol := func(userpass string) ([]byte, error) {
		return s.try(t, pki, "--est", "--url", s.url, "--in", csr, "--cacert", s.root, "--userpass", userpass, "--outform", "pem")
	}
	if out, err := enrol("web-1:not-the-token"); err == nil {
		t.Errorf("a wrong token got %q", out)
	}
	cert, err := enrol(string(inst.ID) + ":" + token)
	if err != nil {
		t.Fatal(err)
	}
	s.keep(t, "cert.pem", cert)
	s.must(t, openssl, "verify", "-x509_strict", "-CAfile", s.bundle, s.path("cert.pem"))
	leaf := s.leaf(t, "cert.pem")
	if len(leaf.DNSNames) != 1 || leaf.DNSNames[0] != "web-1.lab.internal" {
		t.Errorf("names %q", leaf.DNSNames)
	}
	if state := s.state(t, inst.ID); state != imprint.Issued {
		t.Errorf("%s after the first certificate", state)
	}

	// A lost reply: the same request gets the same certificate.
	if again, err := enrol(string(inst.ID) + ":" + token); err != nil || string(again) != string(cert) {
		t.Errorf("repeated: %v, same %v", err, string(again) == string(cert))
	}

	// Renewal shows the certificate, which confirms the enrolment.
	renewed := s.must(t, pki, "--est", "--url", s.url, "--in", csr, "--cacert", s.root,
		"--cert", s.path("cert.pem"), "--key", key, "--outform", "pem")
	s.keep(t, "renewed.pem", renewed)
	s.must(t, openssl, "verify", "-x509_strict", "-CAfile", s.bundle, s.path("renewed.pem"))
	if state := s.state(t, inst.ID); state != imprint.Confirmed {
		t.Errorf("%s after the certificate was used", state)
	}
}

// TestESTStrongSwanWaits: pki keeps asking while an operator has not approved.
func TestESTStrongSwanWaits(t *testing.T) {
	t.Parallel()
	pki := strongSwan(t)
	s := newESTSite(t)
	inst, token := s.reserve(t, "web-1", func(spec *imprint.Spec) { spec.Policy.Approval = true })
	key := s.save(t, "key.der", pki, "--gen", "--type", "ecdsa", "--size", "256")
	csr := s.save(t, "csr.der", pki, "--req", "--in", key, "--type", "priv", "--dn", "CN=web-1")

	approved := make(chan error, 1)
	go func() { approved <- s.approveWhenClaimed(t.Context(), inst.ID) }()
	cert := s.must(t, pki, "--est", "--url", s.url, "--in", csr, "--cacert", s.root,
		"--userpass", "web-1:"+token, "--interval", "1", "--maxpolltime", "20", "--outform", "pem")
	if err := <-approved; err != nil {
		t.Error(err)
	}
	if block, _ := pem.Decode(cert); block == nil {
		t.Errorf("got %q", cert)
	}
}

// TestESTCurl: curl and openssl are enough to be a machine.
func TestESTCurl(t *testing.T) {
	t.Parallel()
	curl, openssl := need.Program(t, "curl", "curl"), need.Program(t, "openssl", "openssl")
	s := newESTSite(t)
	ask := func(t *testing.T, path string, args ...string) string {
		t.Helper()
		return string(s.must(t, curl, append([]string{"-sS", "--cacert", s.root, "-w", "\n%{http_code}", s.url + path}, args...)...))
	}
	save := func(t *testing.T, name, path string, args ...string) string {
		t.Helper()
		s.must(t, curl, append([]string{"-sS", "--fail", "--cacert", s.root, "-o", s.path(name), s.url + path}, args...)...)
		return s.path(name)
	}
	// decode turns a certs-only reply into PEM.
	decode := func(t *testing.T, reply, out string) {
		t.Helper()
		s.must(t, openssl, "base64", "-d", "-A", "-in", reply, "-out", reply+".p7")
		s.must(t, openssl, "pkcs7", "-inform", "DER", "-in", reply+".p7", "-print_certs", "-out", s.path(out))
	}

	decode(t, save(t, "cacerts", "/.well-known/est/cacerts"), "cacerts.pem")
	if pems := string(s.must(t, "cat", s.path("cacerts.pem"))); strings.Count(pems, "BEGIN CERTIFICATE") != 2 {
		t.Errorf("cacerts has not root and issuing CA:\n%s", pems)
	}

	s.must(t, openssl, "base64", "-d", "-A", "-in", save(t, "attrs", "/.well-known/est/csrattrs"), "-out", s.path("attrs.der"))
	attrs := string(s.must(t, openssl, "asn1parse", "-inform", "DER", "-in", s.path("attrs.der")))
	for _, want := range []string{":id-ecPublicKey", ":prime256v1", ":ecdsa-with-SHA256"} {
		if !strings.Contains(attrs, want) {
			t.Errorf("csrattrs lacks %s:\n%s", want, attrs)
		}
	}

	// Every encoding that people make with openssl.
	for name, encode := range map[string][]string{
		"base64":  {"base64", "-A", "-in", "csr.der"},
		"wrapped": {"base64", "-in", "csr.der"},
		"pem":     {"req", "-inform", "DER", "-in", "csr.der"},
		"der":     {"req", "-inform", "DER", "-in", "csr.der", "-outform", "DER"},
	} {
		t.Run(name, func(t *testing.T) {
			inst, token := s.reserve(t, imprint.InstanceName("web-"+name), func(spec *imprint.Spec) {
				spec.Params = []imprint.Param{{Name: "db", Visibility: imprint.Private}}
			})
			s.must(t, openssl, "req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
				"-keyout", s.path(name+".key"), "-subj", "/CN="+string(inst.Spec.Name), "-outform", "DER", "-out", "csr.der")
			body := s.save(t, name+".csr", openssl, encode...)
			post := func(more ...string) []string {
				return append([]string{"--data-binary", "@" + body, "-H", "Content-Type: application/pkcs10"}, more...)
			}
			const enrolPath, renewPath = "/.well-known/est/simpleenroll", "/.well-known/est/machine/simplereenroll"
			if got := ask(t, enrolPath, post("-u", string(inst.Spec.Name)+":wrong")...); !strings.HasSuffix(got, "\n401") {
				t.Errorf("wrong token: %q", got)
			}
			decode(t, save(t, name+".p7", enrolPath, post("-u", string(inst.Spec.Name)+":"+token)...), name+".pem")
			s.must(t, openssl, "verify", "-x509_strict", "-CAfile", s.bundle, s.path(name+".pem"))

			with := []string{"--cert", s.path(name + ".pem"), "--key", s.path(name + ".key")}
			if got := ask(t, "/.well-known/imprint/v1/params/db", with...); got != "canary\n200" {
				t.Errorf("parameter: %q", got)
			}
			decode(t, save(t, name+".renewed", renewPath, post(with...)...), name+".renewed.pem")
			with[1] = s.path(name + ".renewed.pem")
			if got := ask(t, "/.well-known/imprint/v1/ready", append(with, "-X", "POST")...); !strings.HasSuffix(got, "\n204") {
				t.Errorf("ready: %q", got)
			}
			if state := s.state(t, inst.ID); state != imprint.Closed {
				t.Errorf("%s at the end", state)
			}
			if got := ask(t, "/.well-known/imprint/v1/params"); !strings.HasSuffix(got, "\n403") {
				t.Errorf("without a certificate: %q", got)
			}
		})
	}

	crl := save(t, "crl", "/crl/default.crl")
	text := string(s.must(t, openssl, "crl", "-inform", "DER", "-in", crl, "-noout", "-text"))
	if !strings.Contains(text, "Issuer:") {
		t.Errorf("CRL:\n%s", text)
	}
}
