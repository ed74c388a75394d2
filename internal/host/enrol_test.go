package host_test

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"imprint"
	"imprint/internal/host"
	"imprint/internal/triton"
)

func TestGuestEnrolsOverItsSocket(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id := w.reserve("web-1")
	secrets := host.NewSecrets()
	h, _ := start(t, w, runDir(t), func(c *host.Config) { c.Secrets = secrets })
	if err := secrets.Put(id, 1, "disk-key", imprint.NewSecret([]byte("secret of web-1"))); err != nil {
		t.Fatal(err)
	}
	m := newMachine(t, connect(t, h, id, imprint.VirtioSerial))
	values, err := m.enrol(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want(t, values, map[string]string{"motd": "hello", "token": "private of web-1", "disk-key": "secret of web-1"})
	if got, wanted := w.reported(), []string{"delivered", "confirmed", "read token", "read disk-key", "ready"}; !slices.Equal(got, wanted) {
		t.Errorf("reports %q, want %q", got, wanted)
	}
	if !slices.Equal(w.witnesses, []imprint.HostName{"hv1.example"}) {
		t.Errorf("witnesses %q", w.witnesses)
	}
	inst := w.get(id)
	payload, err := m.Get(t.Context(), "imprint:payload")
	if err != nil || inst.Enrolment.Delivery.Payload != imprint.DigestOf(payload) {
		t.Errorf("the payload read again differs from the one on record (%v)", err)
	}
}

func TestConfirmedGuestMeetsItsNewStateAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id := w.reserve("web-1")
	h, _ := start(t, w, runDir(t), withSecret(t, id))
	w.lag = 20 * time.Millisecond // no request is in flight yet
	m := newMachine(t, connect(t, h, id, imprint.VirtioSerial))
	if _, err := m.enrol(t.Context()); err != nil {
		t.Fatal(err)
	}
	_, err := m.Get(t.Context(), "imprint:param/token")
	wantRefusal(t, err, "read token: the enrolment is closed; read imprint:sealed/token with the enrolled key")
}

func TestRepeatedRequestGetsTheSameCertificate(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id := w.reserve("web-1")
	h, _ := start(t, w, runDir(t))
	m := newMachine(t, connect(t, h, id, imprint.Serial2))
	if err := m.claim(t.Context()); err != nil {
		t.Fatal(err)
	}
	first := m.leaf.Raw
	if err := m.claim(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(first, m.leaf.Raw) {
		t.Error("another certificate for the same key")
	}
}

func TestSecondKeyIsToldThatItIsContested(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id := w.reserve("web-1")
	h, _ := start(t, w, runDir(t))
	c := connect(t, h, id, imprint.Serial2)
	if err := newMachine(t, c).claim(t.Context()); err != nil {
		t.Fatal(err)
	}
	err := newMachine(t, c).claim(t.Context())
	if err == nil || err.Error() != "put imprint:request: claim web-1: another key claimed it first" {
		t.Errorf("second key: %v", err)
	}
	w.settle(t)
	if _, err := c.Get(t.Context(), "imprint:certificate"); imprint.KindOf(err) != imprint.NotFound {
		t.Errorf("certificate of a contested enrolment: %v", err)
	}
	wantState(t, c, `{"state":"contested","reason":"a second key","waiting":false,"generation":1}`)
}

func TestRequestWaitsForApproval(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id := w.reserve("web-1")
	w.change(id, func(i *imprint.Instance) { i.Spec.Policy.Approval = true })
	h, _ := start(t, w, runDir(t))
	m := newMachine(t, connect(t, h, id, imprint.Serial2))
	if err := m.claim(t.Context()); imprint.KindOf(err) != imprint.NotFound {
		t.Fatalf("claim before approval: %v; want no certificate yet", err)
	}
	wantState(t, m.Client, `{"state":"claimed","waiting":true,"generation":1}`)
	w.change(id, func(i *imprint.Instance) {
		claim := *i.Enrolment.Claim
		claim.ApprovedBy = "alice"
		i.Enrolment.Claim = &claim
	})
	w.settle(t)
	wantState(t, m.Client, `{"state":"claimed","waiting":false,"generation":1}`)
	if err := m.claim(t.Context()); err != nil {
		t.Errorf("claim after approval: %v", err)
	}
}

func TestWrongConfirmationIsRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id := w.reserve("web-1")
	h, _ := start(t, w, runDir(t), withSecret(t, id))
	m := newMachine(t, connect(t, h, id, imprint.Serial2))
	if err := m.claim(t.Context()); err != nil {
		t.Fatal(err)
	}
	for value, why := range map[string]string{
		"":             "put imprint:confirmation: 0 bytes; it has 1 to 2048",
		"not base64!":  "read confirmation: it is not a signature in base64",
		"c2lnbmF0dXJl": "confirm web-1: the signature is not by the certificate's key",
	} {
		wantRefusal(t, m.Put(t.Context(), "imprint:confirmation", []byte(value)), why)
	}
	_, err := m.sealed(t.Context(), "disk-key")
	wantRefusal(t, err, "read disk-key: no key is enrolled to seal it to (the enrolment is issued)")
}

func TestMalformedRequestsAreRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id := w.reserve("web-1")
	h, _ := start(t, w, runDir(t))
	m := newMachine(t, connect(t, h, id, imprint.Serial2))
	b, err := m.Get(t.Context(), "imprint:payload")
	if err != nil {
		t.Fatal(err)
	}
	if m.payload, err = imprint.DecodePayload(b); err != nil {
		t.Fatal(err)
	}
	good, err := m.request()
	if err != nil {
		t.Fatal(err)
	}
	for value, why := range map[string]string{
		"":                        "put imprint:request: 0 bytes; it has 1 to 8192",
		strings.Repeat("A", 8193): "put imprint:request: 8193 bytes; it has 1 to 8192",
		"hello":                   "read request: it does not start with a PEM certificate request",
		w.caPEM():                 "read request: it does not start with a PEM certificate request",
		string(good) + "ssh-ed25519 AAAA\nssh-rsa BBBB\n":                                "read request: more than one line follows the certificate request; one SSH host key may",
		"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n": "enrol " + string(id) + ": the request's signature is wrong",
	} {
		wantRefusal(t, m.Put(t.Context(), "imprint:request", []byte(value)), why)
		wantRefusal(t, m.Put(t.Context(), "imprint:request", []byte(value)), why)
	}
	if refusals := len(w.reported()) - 1; refusals != 5 {
		t.Errorf("%d refusals on record; want one for each of 5 reasons in a row: %q", refusals, w.reported())
	}
	if err := m.Put(t.Context(), "imprint:request", append(good, "ssh-ed25519 AAAA host\n"...)); err != nil {
		t.Fatal(err)
	}
	if ssh, err := m.Get(t.Context(), "imprint:ssh-certificate"); err != nil || string(ssh) != "ssh-ed25519 AAAA host" {
		t.Errorf("SSH host key arrived as %q, %v", ssh, err)
	}
}

func TestPasswordIsTakenOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id := w.reserve("web-1")
	h, _ := start(t, w, runDir(t))
	c := connect(t, h, id, imprint.Serial2)
	for range 2 { // a lost reply
		if err := c.Put(t.Context(), "imprint:password", []byte("ciphertext")); err != nil {
			t.Fatal(err)
		}
	}
	if got := w.reported(); !slices.Equal(got, []string{"password"}) {
		t.Errorf("reports %q", got)
	}
	wantRefusal(t, c.Put(t.Context(), "imprint:password", make([]byte, 5000)), "put imprint:password: 5000 bytes; it has 1 to 4096")
}

func wantState(t testing.TB, c *triton.Client, want string) {
	t.Helper()
	if got, err := c.Get(t.Context(), "imprint:state"); err != nil || string(got) != want {
		t.Errorf("imprint:state is %s, %v; want %s", got, err, want)
	}
}

// wantRefusal fails the test unless err is the host's refusal with this sentence.
func wantRefusal(t testing.TB, err error, sentence string) {
	t.Helper()
	var failure triton.Failure
	if !errors.As(err, &failure) || string(failure) != sentence {
		t.Errorf("got %v, want the refusal %q", err, sentence)
	}
}
