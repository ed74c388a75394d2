package guest

import (
	"crypto/tls"

	"imprint"
)

// Identity is who an enrolled machine is.
type Identity struct {
	Payload     imprint.Payload // without its token
	Certificate tls.Certificate // with its issuing chain
}

// Identity returns what the machine has. It fails with kind [imprint.NotFound]
// if it was never enrolled. The certificate may have ended.
func (a *Agent) Identity() (*Identity, error) {
	rec, cred, err := a.current()
	if err != nil {
		return nil, err
	}
	id := &Identity{Payload: rec.Payload, Certificate: tls.Certificate{PrivateKey: cred.key, Leaf: cred.leaf()}}
	for _, c := range cred.chain {
		id.Certificate.Certificate = append(id.Certificate.Certificate, c.Raw)
	}
	return id, nil
}
