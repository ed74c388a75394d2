package guest

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"strings"
	"time"

	"imprint"
	"imprint/internal/keybox"
	"imprint/internal/triton"
)

// The keys that imprint serves over the Triton metadata protocol.
const (
	keyPayload        = "imprint:payload"
	keyTime           = "imprint:time"
	keyState          = "imprint:state"
	keyRequest        = "imprint:request"
	keyCertificate    = "imprint:certificate"
	keySSHCertificate = "imprint:ssh-certificate"
	keyConfirmation   = "imprint:confirmation"
	keyParams         = "imprint:params"
	keyParam          = "imprint:param/"    // + name: the value in clear
	keySealed         = "imprint:sealed/"   // + name: the value sealed to the enrolled key
	keyUserData       = "imprint:user-data" // sealed to the enrolled key
	keyReady          = "imprint:ready"
)

// metadata is the part of the Triton client that the agent uses. A key that
// does not exist is of kind [imprint.NotFound]; a request that the host turned
// down has the host's sentence in its error.
type metadata interface {
	Get(ctx context.Context, key string) ([]byte, error)
	Put(ctx context.Context, key string, value []byte) error
}

// liveHost is a [triton.Client] whose host can say that it was no refusal: its
// control plane is away. Such failures, and a stream that ended, are of kind
// [imprint.Unavailable].
type liveHost struct{ client *triton.Client }

func (h liveHost) Get(ctx context.Context, key string) ([]byte, error) {
	b, err := h.client.Get(ctx, key)
	return b, maybeLater(err)
}

func (h liveHost) Put(ctx context.Context, key string, value []byte) error {
	return maybeLater(h.client.Put(ctx, key, value))
}

func maybeLater(err error) error {
	var sentence triton.Failure
	switch {
	case errors.As(err, &sentence) && strings.HasSuffix(string(sentence), triton.AskAgain):
		return imprint.Errorf(imprint.Unavailable, "ask", "the host", "%w", sentence)
	case imprint.KindOf(err) == imprint.Conflict: // from triton.Once
		return imprint.Errorf(imprint.Unavailable, "ask", "the host", "the channel was cut")
	}
	return err
}

// Pauses between two looks for a certificate that is not there yet.
const (
	pollFirst = 100 * time.Millisecond
	pollMost  = 15 * time.Second
)

// tritonLink talks to the host over a live channel.
type tritonLink struct {
	metadata
	io.Closer
	payload *imprint.Payload
	console *Console
	sleep   sleeper
}

// hostState is the value of imprint:state.
type hostState struct {
	State      imprint.State      `json:"state"`
	Reason     string             `json:"reason"`
	Waiting    bool               `json:"waiting"`
	Generation imprint.Generation `json:"generation"`
}

func (l *tritonLink) Enrol(ctx context.Context, req request, current *credential) ([]*x509.Certificate, error) {
	var body bytes.Buffer
	pem.Encode(&body, &pem.Block{Type: "CERTIFICATE REQUEST", Bytes: req.csr}) // a Buffer does not fail
	if req.sshHost != "" {
		body.WriteString(req.sshHost + "\n")
	}
	for pause := pollFirst; ; pause = min(2*pause, pollMost) {
		// The request goes first each time: a host that was restarted between two
		// looks may not know of it any more, and repeating it is free.
		putErr := l.Put(ctx, keyRequest, body.Bytes())
		if putErr == nil {
			chain, err := l.certificate(ctx)
			if imprint.KindOf(err) != imprint.NotFound {
				return chain, err
			}
		} else if imprint.KindOf(putErr) == imprint.Unavailable {
			return nil, putErr
		}
		if err := l.explain(ctx, putErr, current != nil); err != nil {
			return nil, err
		}
		if err := l.sleep(ctx, pause); err != nil {
			return nil, err
		}
	}
}

func (l *tritonLink) certificate(ctx context.Context) ([]*x509.Certificate, error) {
	b, err := l.Get(ctx, keyCertificate)
	if err != nil {
		return nil, err
	}
	return parseChain(b)
}

// explain asks the host why there is no certificate. It returns nil if waiting
// may help, and else why it does not. refusal is the answer to the request.
func (l *tritonLink) explain(ctx context.Context, refusal error, renewal bool) error {
	b, err := l.Get(ctx, keyState)
	if err != nil {
		return err
	}
	var s hostState
	if err := json.Unmarshal(b, &s); err != nil {
		return imprint.Errorf(imprint.Unavailable, "read", "the enrolment's state", "%w", err)
	}
	reason := oneLine(s.Reason)
	switch {
	case s.State == imprint.InDispute:
		return imprint.Errorf(imprint.Contested, "enrol", string(l.payload.Name), "another key claimed this machine: %s", reason).
			WithHint("find out who the other claimant is; then imprint rebirth %s", l.payload.Name)
	case s.State == imprint.Expired || s.State == imprint.Revoked:
		return imprint.Errorf(imprint.Denied, "enrol", string(l.payload.Name), "the enrolment is %s: %s", s.State, reason).
			WithHint("imprint rebirth %s starts the next generation", l.payload.Name)
	case s.Generation != 0 && s.Generation != l.payload.Generation:
		return imprint.Errorf(imprint.Unavailable, "enrol", string(l.payload.Name),
			"generation %d began meanwhile; reading the payload again", s.Generation)
	case s.Waiting:
		l.console.About("enrolment", "waiting for an operator to approve %s", l.payload.Name)
		return nil
	case refusal != nil:
		return imprint.Errorf(imprint.Denied, "enrol", string(l.payload.Name), "%w", refusal).
			WithHint("imprint describe %s shows what was refused", l.payload.Name)
	}
	l.console.About("enrolment", "the request is %s; waiting for the certificate", s.State)
	return nil
}

func (l *tritonLink) Confirm(ctx context.Context, cred *credential) error {
	signature, err := confirmation(l.payload, cred.key, cred.leaf())
	if err != nil {
		return err
	}
	return l.Put(ctx, keyConfirmation, []byte(base64.StdEncoding.EncodeToString(signature)))
}

func (l *tritonLink) Ready(ctx context.Context, _ *credential) error {
	return l.Put(ctx, keyReady, []byte("ready"))
}

func (l *tritonLink) Params(ctx context.Context, _ *credential) ([]Param, error) {
	b, err := l.Get(ctx, keyParams)
	if err != nil {
		return nil, err
	}
	return parseParams(b)
}

// Param asks for everything but public values sealed to the enrolled key, so
// that nothing private is in clear on the channel at any time.
func (l *tritonLink) Param(ctx context.Context, cred *credential, p Param) (imprint.Secret, error) {
	if p.Visibility == imprint.Public {
		b, err := l.Get(ctx, keyParam+p.Name)
		return imprint.NewSecret(b), err
	}
	return l.unseal(ctx, cred, keySealed+p.Name, p.Name)
}

func (l *tritonLink) UserData(ctx context.Context, cred *credential) (imprint.Secret, error) {
	return l.unseal(ctx, cred, keyUserData, keyUserData)
}

// unseal reads a key and opens what is sealed there under name.
func (l *tritonLink) unseal(ctx context.Context, cred *credential, key, name string) (imprint.Secret, error) {
	b, err := l.Get(ctx, key)
	if err != nil {
		return imprint.Secret{}, err
	}
	box, err := base64.StdEncoding.DecodeString(string(bytes.TrimSpace(b)))
	if err != nil {
		return imprint.Secret{}, imprint.Errorf(imprint.Invalid, "open", name, "%w", err)
	}
	return keybox.Open(cred.key, keybox.Info{Instance: l.payload.Instance, Generation: l.payload.Generation, Name: name}, box)
}

// SSHCertificate reads what was issued for the key that went up with the request.
func (l *tritonLink) SSHCertificate(ctx context.Context, _ *credential, _ string) ([]byte, error) {
	return l.Get(ctx, keySSHCertificate)
}
