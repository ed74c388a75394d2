package guest

import (
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/json"

	"imprint"
)

// enroller brings a claim to imprint. Every method may be repeated with the
// same arguments: a lost reply costs nothing.
//
// Errors: [imprint.Denied], [imprint.Unauthorized] and [imprint.Contested] are
// refusals that a repetition will not change; [imprint.Unavailable] means that
// nobody answered properly, and the carrier should be opened again.
type enroller interface {
	// Enrol sends the request and waits, while an operator has to approve, for
	// the certificate and its issuing chain, the leaf first. With a current
	// credential it asks for its renewal and returns the current certificate
	// again if imprint says that it is not due.
	Enrol(ctx context.Context, req request, current *credential) ([]*x509.Certificate, error)
	// Confirm proves possession of the credential's key and receipt of its certificate.
	Confirm(ctx context.Context, cred *credential) error
	// SSHCertificate returns the certificate for an SSH host key, both in
	// authorized_keys form: kind [imprint.NotFound] if none was issued, and
	// [imprint.Conflict] or [imprint.Denied] if imprint does not certify the key.
	SSHCertificate(ctx context.Context, cred *credential, key string) ([]byte, error)
	// Ready says that the machine has all it needs.
	Ready(ctx context.Context, cred *credential) error
}

// paramReader reads parameters after the confirmation.
type paramReader interface {
	// Params lists the parameters.
	Params(ctx context.Context, cred *credential) ([]Param, error)
	// Param returns one value: kind [imprint.NotFound] if there is none.
	Param(ctx context.Context, cred *credential, p Param) (imprint.Secret, error)
	// UserData returns the user data: kind [imprint.NotFound] if there is none.
	UserData(ctx context.Context, cred *credential) (imprint.Secret, error)
}

// link is an open way to imprint.
type link interface {
	enroller
	paramReader
	Close() error
}

// credential is a key with its certificate and issuing chain.
type credential struct {
	key   *ecdsa.PrivateKey
	chain []*x509.Certificate // the leaf first
}

func (c *credential) leaf() *x509.Certificate { return c.chain[0] }

func (c *credential) serial() imprint.Serial { return serialOf(c.leaf()) }

// Param describes one parameter, without its value.
type Param struct {
	Name       string             `json:"name"`
	Visibility imprint.Visibility `json:"visibility"`
	// Available is false while imprint has no value for it: after a reinstall,
	// or a restart of the host, secret values have to be given again.
	Available bool `json:"available"`
}

// maxParamList is the size limit in bytes of an encoded list of parameters.
const maxParamList = 64 << 10

// parseParams reads a list of parameters. A name becomes a file name, so one
// that could leave its directory fails the whole list, with kind [imprint.Invalid].
func parseParams(b []byte) ([]Param, error) {
	if len(b) > maxParamList {
		return nil, imprint.Errorf(imprint.Invalid, "read", "parameter list", "%d bytes; the limit is %d", len(b), maxParamList)
	}
	var params []Param
	if err := json.Unmarshal(b, &params); err != nil {
		return nil, imprint.Errorf(imprint.Invalid, "read", "parameter list", "%w", err)
	}
	if len(params) > imprint.MaxParams {
		return nil, imprint.Errorf(imprint.Invalid, "read", "parameter list", "%d entries; the limit is %d", len(params), imprint.MaxParams)
	}
	seen := make(map[string]bool, len(params))
	for _, p := range params {
		if err := checkParamName(p.Name); err != nil {
			return nil, err
		}
		if seen[p.Name] {
			return nil, imprint.Errorf(imprint.Invalid, "read", "parameter list", "%q twice", p.Name)
		}
		seen[p.Name] = true
	}
	return params, nil
}

func checkParamName(name string) error {
	ok := name != "" && len(name) <= imprint.MaxParamNameLen && name[0] != '.'
	for _, c := range []byte(name) {
		ok = ok && (c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_' || c == '.')
	}
	if !ok {
		return imprint.Errorf(imprint.Invalid, "check", "parameter name", "%q", name).
			WithHint("a name has 1 to %d letters, digits, dots, hyphens and underscores and does not start with a dot", imprint.MaxParamNameLen)
	}
	return nil
}
