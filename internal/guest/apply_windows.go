package guest

import (
	"bytes"
	"context"
	"crypto/x509"
	"os"
	"path/filepath"
	"unsafe"

	"golang.org/x/sys/windows"

	"imprint"
)

// trustCA adds the CA to the machine's trusted roots. The certificate and its
// key stay files: only this agent and its administrators read them.
func (a *Agent) trustCA(_ context.Context, p *imprint.Payload) error {
	roots, err := parseChain([]byte(p.CA))
	if err != nil {
		return err
	}
	for _, root := range roots {
		if err := addRoot(root); err != nil {
			return imprint.Errorf(imprint.Internal, "trust", "the CA", "%w", err)
		}
	}
	return nil
}

func addRoot(cert *x509.Certificate) error {
	name, err := windows.UTF16PtrFromString("ROOT")
	if err != nil {
		return err
	}
	store, err := windows.CertOpenStore(windows.CERT_STORE_PROV_SYSTEM, 0, 0,
		windows.CERT_SYSTEM_STORE_LOCAL_MACHINE, uintptr(unsafe.Pointer(name)))
	if err != nil {
		return err
	}
	defer windows.CertCloseStore(store, 0)
	certContext, err := windows.CertCreateCertificateContext(windows.X509_ASN_ENCODING, &cert.Raw[0], uint32(len(cert.Raw)))
	if err != nil {
		return err
	}
	defer windows.CertFreeCertificateContext(certContext)
	return windows.CertAddCertificateContextToStore(store, certContext, windows.CERT_STORE_ADD_REPLACE_EXISTING, nil)
}

// sshHostKey is where Windows' own OpenSSH server has its host key.
func (l Layout) sshHostKey() string {
	return filepath.Join(l.programData(), "ssh", "ssh_host_ed25519_key.pub")
}

// installSSH puts the host certificate beside the host key and tells sshd of it.
func (a *Agent) installSSH(_ context.Context, cert []byte) error {
	dir := filepath.Join(a.layout.programData(), "ssh")
	path := filepath.Join(dir, "ssh_host_ed25519_key-cert.pub")
	if err := writeIfChanged(path, cert); err != nil {
		return err
	}
	config, err := os.ReadFile(filepath.Join(dir, "sshd_config"))
	if err != nil || !bytes.Contains(config, []byte("ssh_host_ed25519_key-cert.pub")) {
		a.console.About("ssh", "the host certificate is %s; add a HostCertificate line to sshd_config, which has no directory to add to", path)
	}
	return nil
}
