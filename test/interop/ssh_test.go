//go:build interop

package interop

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"imprint"
	"imprint/test/need"
)

// TestSSHHostCertificateOverEST: a machine that enrolled with curl has its SSH
// host key certified with curl; OpenSSH's tools read the certificate, its server
// shows it, and its client trusts it by the CA alone, for the machine's name only.
func TestSSHHostCertificateOverEST(t *testing.T) {
	t.Parallel()
	curl, openssl := need.Program(t, "curl", "curl"), need.Program(t, "openssl", "openssl")
	keygen, ssh := need.Program(t, "ssh-keygen", "openssh-client"), need.Program(t, "ssh", "openssh-client")
	const sshd = "/usr/sbin/sshd" // not on every user's path
	need.File(t, sshd, "openssh-server")
	s := newESTSite(t)
	inst, token := s.reserve(t, "web-1", nil)

	s.must(t, openssl, "req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
		"-keyout", "key.pem", "-subj", "/CN=web-1", "-outform", "DER", "-out", "csr.der")
	s.must(t, curl, "-sS", "--fail", "--cacert", s.root, "-u", "web-1:"+token, "-H", "Content-Type: application/pkcs10",
		"--data-binary", "@csr.der", "-o", "reply", s.url+"/.well-known/est/simpleenroll")
	s.must(t, openssl, "base64", "-d", "-A", "-in", "reply", "-out", "reply.p7")
	s.must(t, openssl, "pkcs7", "-inform", "DER", "-in", "reply.p7", "-print_certs", "-out", "cert.pem")

	s.must(t, keygen, "-q", "-t", "ed25519", "-N", "", "-C", "root@web-1", "-f", "host")
	post := func(out string, more ...string) ([]byte, error) {
		return s.try(t, curl, append([]string{"-sS", "--fail", "--cacert", s.root, "--data-binary", "@host.pub", "-o", out,
			s.url + "/.well-known/imprint/v1/ssh-certificate"}, more...)...)
	}
	if out, err := post("refused"); err == nil {
		t.Errorf("certified without a certificate: %s", out)
	}
	if _, err := post("host-cert.pub", "--cert", "cert.pem", "--key", "key.pem"); err != nil {
		t.Fatal(err)
	}
	text := string(s.must(t, keygen, "-L", "-f", "host-cert.pub"))
	for _, want := range []string{
		"Type: ssh-ed25519-cert-v01@openssh.com host certificate",
		"Key ID: \"spiffe://imprint.internal/tenant/default/instance/" + string(inst.ID) + "/generation/1\"",
		"Public key: ED25519-CERT " + strings.Fields(string(s.must(t, keygen, "-l", "-f", "host.pub")))[1],
		"                web-1.lab.internal\n                web-1\n", "Critical Options: (none)",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("ssh-keygen does not read %q in\n%s", want, text)
		}
	}
	seen := timeline(t, s, inst.ID)
	for _, kind := range []imprint.EventKind{imprint.EventIssued, imprint.EventConfirmed, imprint.EventSSHHost, imprint.EventRenewed} {
		if !strings.Contains(seen, string(kind)) {
			t.Errorf("the timeline has no %q: %s", kind, seen)
		}
	}

	if os.Geteuid() == 0 { // where it drops its privileges; its service has systemd make it
		if err := os.MkdirAll("/run/sshd", 0o755); err != nil {
			t.Fatal(err)
		}
	}
	config := fmt.Sprintf("HostKey %s\nHostCertificate %s\nUsePAM no\nPidFile none\n", s.path("host"), s.path("host-cert.pub"))
	s.keep(t, "sshd_config", []byte(config))
	s.keep(t, "known_hosts", []byte("@cert-authority *.lab.internal "+s.authority.SSHKey()+"\n"))
	// connect says what the client thinks of the host; nobody is let in.
	connect := func(name string) string {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		cmd := exec.CommandContext(ctx, ssh, "-F", "none", "-v", "-o", "BatchMode=yes", "-o", "PreferredAuthentications=none",
			"-o", "StrictHostKeyChecking=yes", "-o", "GlobalKnownHostsFile=none", "-o", "UserKnownHostsFile="+s.path("known_hosts"),
			"-o", fmt.Sprintf("ProxyCommand=%s -i -f %s", sshd, s.path("sshd_config")), name, "true")
		out, err := cmd.CombinedOutput()
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			t.Fatalf("ssh %s: %v\n%s", name, err, out)
		}
		return string(out)
	}
	if out := connect("web-1.lab.internal"); !strings.Contains(out, "is known and matches the ED25519-CERT host certificate") || !strings.Contains(out, "Permission denied") {
		t.Errorf("the client does not trust the host:\n%s", out)
	}
	if out := connect("web-2.lab.internal"); !strings.Contains(out, "Host key verification failed") || strings.Contains(out, "Permission denied") {
		t.Errorf("the client takes the host for another:\n%s", out)
	}
}

// timeline returns the kinds of an instance's events in order.
func timeline(t *testing.T, s *estSite, id imprint.InstanceID) string {
	t.Helper()
	events, err := s.store.Events(t.Context(), id, 0)
	if err != nil {
		t.Fatal(err)
	}
	var kinds []string
	for _, e := range events {
		kinds = append(kinds, string(e.Kind))
	}
	return strings.Join(kinds, " ")
}
