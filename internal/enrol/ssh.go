package enrol

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"strings"
	"time"

	"imprint"
)

// MaxEarlier is how many replaced certificates of a generation may be alive
// before a change of its SSH host key has to wait for one of them to end. It
// bounds what a machine can put on the issuance log, and its record.
const MaxEarlier = 8

// CertifySSHHost has an SSH host public key (one line in authorized_keys form)
// certified for the machine that who names. That the machine showed the
// certificate of who, whose key is the enrolled one, vouches for the SSH key. The
// SSH certificate is issued with a new TLS certificate, in one entry of the
// issuance log, and every renewal of the one is a renewal of the other. Repeating
// the key is harmless and returns what is there.
//
// Kinds: Invalid for a key that cannot be certified; Conflict while more than
// [MaxEarlier] certificates are alive; what [Engine.Authenticate] fails with;
// Unavailable, and what Store and Issuer fail with.
func (e *Engine) CertifySSHHost(ctx context.Context, who imprint.Identity, line string) (*imprint.Instance, error) {
	key, flaw := parseSSHHost(line)
	serial, now := imprint.NewSerial(), e.Now()
	return e.move(ctx, who.Instance, e.issuing(ctx, func(i *imprint.Instance) (imprint.Change, error) {
		return certifySSHHost(i, who, key, flaw, serial, now)
	}))
}

// certifySSHHost puts key into the claim of i, whose next certificate then
// comes with one for it. flaw is why key is of no use, or nil.
func certifySSHHost(i *imprint.Instance, who imprint.Identity, key string, flaw error, serial imprint.Serial, now time.Time) (imprint.Change, error) {
	const over = imprint.NetworkEST
	if err := authenticate(i, who, now); err != nil {
		return refuse(over, err, "serial", string(who.Serial))
	}
	if flaw != nil {
		return refuse(over, flaw)
	}
	e := &i.Enrolment
	if e.Claim.SSHHost == key {
		return imprint.Change{Keep: true}, nil
	}
	if alive := len(living(e.Earlier, now)); alive >= MaxEarlier {
		return refuse(over, imprint.Errorf(imprint.Conflict, "certify SSH host key of", i.Ref(), "%d earlier certificates are still alive", alive).
			WithHint("a machine keeps its SSH host key; the next change is possible when one of them has ended"))
	}
	next := *e.Claim
	next.SSHHost = key
	fix(&next, i, serial, now)
	e.Claim = &next
	return imprint.Change{Events: []imprint.Event{event(imprint.EventSSHHost, over, "fingerprint", sshFingerprint(key), "serial", string(serial))}}, nil
}

// sshFingerprint is how ssh-keygen -l shows a key that [parseSSHHost] returned.
func sshFingerprint(key string) string {
	_, b64, _ := strings.Cut(key, " ")
	blob, _ := base64.StdEncoding.DecodeString(b64) // it was decoded before
	sum := sha256.Sum256(blob)
	return "SHA256:" + base64.RawStdEncoding.EncodeToString(sum[:])
}
