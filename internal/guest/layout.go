package guest

import (
	"path/filepath"

	"imprint"
)

// Layout says where the agent's files are. Every path of the agent comes from
// here, so that a test, or a chroot being prepared, is one other Root.
type Layout struct {
	// Root is put before every path; "" is the machine itself.
	Root string
}

func (l Layout) at(elem ...string) string {
	return filepath.Join(append([]string{l.Root + string(filepath.Separator)}, elem...)...)
}

// Record is the file that says who this machine is.
func (l Layout) Record() string { return filepath.Join(l.Config(), "identity.json") }

// Key is the private key, PKCS #8 in PEM, mode 0600.
func (l Layout) Key() string { return filepath.Join(l.Config(), "key.pem") }

// Cert is the certificate followed by its issuing chain, in PEM.
func (l Layout) Cert() string { return filepath.Join(l.Config(), "cert.pem") }

// CA is the bundle of trusted roots, in PEM.
func (l Layout) CA() string { return filepath.Join(l.Config(), "ca.pem") }

// Payload is the file that is read when nothing better has a payload.
func (l Layout) Payload() string { return filepath.Join(l.Config(), "payload.json") }

// Hooks is the directory of programs to run when a certificate is put to use.
func (l Layout) Hooks() string { return filepath.Join(l.Config(), "enrolled.d") }

// Params is the directory of parameter values, one file each. It is always in
// memory and does not exist on Windows, which has no file system in memory.
func (l Layout) Params() string { return filepath.Join(l.Run(), "params") }

// Index is the file that lists the parameters, without their values.
func (l Layout) Index() string { return filepath.Join(l.Run(), "params.json") }

// Lock is held by the process that may change the files above.
func (l Layout) Lock() string { return filepath.Join(l.Run(), "agent.lock") }

// aside is the directory to which the files of generation gen are moved.
func (l Layout) aside(gen imprint.Generation) string {
	return filepath.Join(l.Config(), "old", generationName(gen))
}
