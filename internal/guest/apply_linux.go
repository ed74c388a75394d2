package guest

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"imprint"
)

// trustStore is one distribution family's place for additional CAs, and the
// program that takes them up.
type trustStore struct{ dir, program string }

var trustStores = [...]trustStore{
	{"/usr/local/share/ca-certificates", "update-ca-certificates"}, // Debian, Alpine
	{"/etc/pki/ca-trust/source/anchors", "update-ca-trust"},        // RHEL, Fedora
	{"/etc/pki/trust/anchors", "update-ca-certificates"},           // SUSE
}

// platformGrace is how long the output of a program of the platform is waited
// for once the program has ended.
const platformGrace = time.Second

// trustCA adds the CA to every trust store of the platform that exists.
func (a *Agent) trustCA(ctx context.Context, p *imprint.Payload) error {
	for _, store := range trustStores {
		dir := a.layout.at(store.dir)
		if info, err := os.Stat(dir); err != nil || !info.IsDir() {
			continue
		}
		if err := writeIfChanged(filepath.Join(dir, "imprint-"+string(p.Tenant)+".crt"), []byte(p.CA)); err != nil {
			return err
		}
		a.runPlatform(ctx, store.program)
	}
	return nil
}

func (l Layout) sshHostKey() string { return l.at("etc", "ssh", "ssh_host_ed25519_key.pub") }

// installSSH puts the host certificate beside the host key and tells sshd of it.
func (a *Agent) installSSH(ctx context.Context, cert []byte) error {
	path := a.layout.at("etc", "ssh", "ssh_host_ed25519_key-cert.pub")
	if err := writeIfChanged(path, cert); err != nil {
		return err
	}
	dir := a.layout.at("etc", "ssh", "sshd_config.d")
	if info, err := os.Stat(dir); err != nil || !info.IsDir() {
		a.console.About("ssh", "the host certificate is %s; this sshd reads no sshd_config.d, so add a HostCertificate line to its configuration", path)
		return nil
	}
	line := "# Written by imprint-agent.\nHostCertificate /etc/ssh/ssh_host_ed25519_key-cert.pub\n"
	if err := writeIfChanged(filepath.Join(dir, "imprint.conf"), []byte(line)); err != nil {
		return err
	}
	a.console.About("ssh", "the host certificate is %s", path)
	return nil
}

// runPlatform runs a program of the platform if it is there, on the real root
// only. The identity does not depend on it, so that its failure is only said.
func (a *Agent) runPlatform(ctx context.Context, program string) {
	path, err := exec.LookPath(program)
	if err != nil || a.layout.Root != "" {
		return
	}
	ctx, cancel := context.WithTimeoutCause(ctx, a.hookTime, errHookTime)
	defer cancel()
	cmd := hookCommand(ctx, path) // a script as a rule, whose children have to end with it
	cmd.WaitDelay = platformGrace // for one that left its process group
	if out, err := cmd.CombinedOutput(); err != nil {
		a.console.Say("%s: %v: %s", program, errors.Join(err, context.Cause(ctx)), oneLine(string(out)))
	}
}
