//go:build linux

package guest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestWritesWhatThePlatformReads(t *testing.T) {
	t.Parallel()
	host := newFakeHost(t)
	m := newMachine(t, host)
	m.write("etc/ssh/ssh_host_ed25519_key.pub", "ssh-ed25519 AAAAhostkey root@web-1\n", 0o644)
	for _, dir := range []string{"usr/local/share/ca-certificates", "etc/pki/ca-trust/source/anchors", "etc/ssh/sshd_config.d"} {
		if err := os.MkdirAll(filepath.Join(m.root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	m.mustRun()
	for path, want := range map[string]string{
		"usr/local/share/ca-certificates/imprint-default.crt": host.ca.rootPEM(),
		"etc/pki/ca-trust/source/anchors/imprint-default.crt": host.ca.rootPEM(),
		"etc/imprint/ca.pem":                    host.ca.rootPEM(),
		"etc/ssh/ssh_host_ed25519_key-cert.pub": "ssh-ed25519-cert-v01@openssh.com AAAAcert-for-ssh-ed25519 AAAAhostkey\n",
		"etc/ssh/sshd_config.d/imprint.conf":    "# Written by imprint-agent.\nHostCertificate /etc/ssh/ssh_host_ed25519_key-cert.pub\n",
	} {
		if got := m.read(path); got != want {
			t.Errorf("%s = %q, want %q", path, got, want)
		}
	}
	if _, err := os.Stat(filepath.Join(m.root, "etc/pki/trust")); err == nil {
		t.Error("made the trust store of a distribution that this is not")
	}
}

func TestLeavesThePlatformAloneWhenAsked(t *testing.T) {
	t.Parallel()
	host := newFakeHost(t)
	m := newMachine(t, host)
	m.write("etc/ssh/ssh_host_ed25519_key.pub", "ssh-ed25519 AAAAhostkey\n", 0o644)
	m.write("usr/local/share/ca-certificates/local.crt", "", 0o644)
	a := m.agent()
	a.o.TrustCA, a.o.SSH = false, false
	if err := m.run(a); err != nil {
		t.Fatal(err)
	}
	if host.ssh != "" {
		t.Errorf("asked for a certificate for %q", host.ssh)
	}
	if _, err := os.Stat(filepath.Join(m.root, "usr/local/share/ca-certificates/imprint-default.crt")); err == nil {
		t.Error("the CA was added")
	}
}

func TestEnrolledPrograms(t *testing.T) {
	t.Parallel()
	host := newFakeHost(t)
	m := newMachine(t, host)
	log := m.root + "/ran"
	m.write("etc/imprint/enrolled.d/20-second", "#!/bin/sh\necho second >>"+log+"\n", 0o755)
	m.write("etc/imprint/enrolled.d/10-first", "#!/bin/sh\necho first >>"+log+"\nenv >"+m.root+"/env\necho hello; echo trouble >&2\nexit 3\n", 0o755)
	m.write("etc/imprint/enrolled.d/30-writable", "#!/bin/sh\necho writable >>"+log+"\n", 0o755)
	m.write("etc/imprint/enrolled.d/40-plain", "echo plain >>"+log+"\n", 0o644)
	if err := os.Chmod(filepath.Join(m.root, "etc/imprint/enrolled.d/30-writable"), 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/bin/true", filepath.Join(m.root, "etc/imprint/enrolled.d/50-link")); err != nil {
		t.Fatal(err)
	}
	m.mustRun()
	if got := m.read("ran"); got != "first\nsecond\n" {
		t.Errorf("ran %q", got)
	}
	for _, want := range []string{"10-first: hello", "10-first: trouble", "10-first: exit status 3", "30-writable is not run: anybody may write to it", "40-plain is not run: it is not executable", "50-link is not run"} {
		if !strings.Contains(m.said(), want) {
			t.Errorf("nothing says %q:\n%s", want, m.said())
		}
	}
	env := m.read("env")
	for _, want := range []string{"IMPRINT_EVENT=enrolled\n", "IMPRINT_NAME=web-1\n", "IMPRINT_KEY=" + m.root + "/etc/imprint/key.pem\n", "IMPRINT_PARAMS=" + m.root + "/run/imprint/params\n"} {
		if !strings.Contains(env, want) {
			t.Errorf("the environment lacks %q", want)
		}
	}
	if strings.Contains(env, "canary") {
		t.Error("the environment holds a parameter")
	}
	m.mustRun() // another boot with the same certificate
	if got := m.read("ran"); got != "first\nsecond\n" {
		t.Errorf("a second boot ran them again: %q", got)
	}
}

func TestAProgramThatHangsIsEnded(t *testing.T) {
	t.Parallel()
	m := newMachine(t, newFakeHost(t))
	// The child keeps the output open after its parent is gone.
	m.write("etc/imprint/enrolled.d/10-hang", "#!/bin/sh\nsleep 600 &\nsleep 600\n", 0o755)
	a := m.agent()
	a.hookTime = 200 * time.Millisecond
	start := time.Now()
	if err := m.run(a); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("took %s", took)
	}
	if !strings.Contains(m.said(), "took too long") {
		t.Errorf("%s", m.said())
	}
}

func TestAPlatformsProgramThatHangsIsEnded(t *testing.T) {
	t.Parallel()
	m := newMachine(t, nil)
	m.write("update", "#!/bin/sh\necho at work\n(sleep 600)\n:\n", 0o755) // as slow as update-ca-certificates can be
	a := New(Options{}, NewConsole(m))
	a.hookTime = 200 * time.Millisecond
	start := time.Now()
	a.runPlatform(t.Context(), m.root+"/update")
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("took %s", took)
	}
	if !strings.Contains(m.said(), "took too long and was ended: at work") {
		t.Errorf("%s", m.said())
	}
}

// What an agent that was killed left of a file that it was writing, a key say, is
// gone when the next one has begun.
func TestUnfinishedFilesAreRemoved(t *testing.T) {
	t.Parallel()
	m := newMachine(t, newFakeHost(t))
	m.write("etc/imprint/.key.pem.new-ABCDEFGH", "-----BEGIN PRIVATE KEY-----", 0o600)
	m.write("etc/imprint/.profile", "the operator's", 0o644)
	m.mustRun()
	if _, err := os.Stat(filepath.Join(m.root, "etc/imprint/.key.pem.new-ABCDEFGH")); err == nil {
		t.Error("half a key is left")
	}
	if got := m.read("etc/imprint/.profile"); got != "the operator's" {
		t.Errorf("the operator's file is %q", got)
	}
}

func TestConsoleKeepsToOneLine(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	c := NewConsole(&out)
	c.Say("the host says %q and %s", "x", "a\nimprint-agent: forged\x1b[2J")
	c.About("port", "nobody")
	c.About("port", "nobody")
	c.About("port", "somebody")
	c.About("port", "nobody")
	want := "imprint-agent: the host says \"x\" and a imprint-agent: forged [2J\n" +
		"imprint-agent: port: nobody\nimprint-agent: port: somebody\nimprint-agent: port: nobody\n"
	if out.String() != want {
		t.Errorf("%q", out.String())
	}
}
