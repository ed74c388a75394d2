package enrol_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"strings"
	"testing"
	"time"

	"imprint"
	"imprint/internal/enrol"
)

// newSSHKey returns a fresh SSH host public key.
func newSSHKey(t testing.TB) string {
	t.Helper()
	pub, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	var blob []byte
	for _, s := range []string{"ssh-ed25519", string(pub)} {
		blob = append(binary.BigEndian.AppendUint32(blob, uint32(len(s))), s...)
	}
	return "ssh-ed25519 " + base64.StdEncoding.EncodeToString(blob)
}

// overEST takes m to a certificate over the network, and returns its identity.
func (w *world) overEST(t testing.TB, id imprint.InstanceID, m *machine) imprint.Identity {
	t.Helper()
	token, err := w.engine.Token(t.Context(), id, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	i, err := w.engine.Enrol(t.Context(), m.est(id, token))
	if err != nil {
		t.Fatal(err)
	}
	return imprint.Identity{
		Tenant: imprint.DefaultTenant, Instance: id, Generation: i.Generation, Serial: i.Enrolment.Certificate.Serial, Key: m.id,
	}
}

// TestSSHHostOverEST: a machine's certificate gets its SSH host key certified,
// once, on record, and from then on with every renewal.
func TestSSHHostOverEST(t *testing.T) {
	t.Parallel()
	w, m := newWorld(), newMachine(t)
	id := w.reserve(t)
	who := w.overEST(t, id, m)
	seen := len(w.store.records[id].events)
	for range 2 { // a lost reply
		i, err := w.engine.CertifySSHHost(t.Context(), who, sshEd25519+" root@web-1\n")
		if err != nil || i.Enrolment.Certificate.SSH != "certificate for "+sshEd25519 {
			t.Fatalf("%+v, %v", i, err)
		}
	}
	wantEvents(t, w.events(id, seen), imprint.EventSSHHost, imprint.EventRenewed)
	asked, renewed := w.store.records[id].events[seen], w.last(id)
	if asked.Detail["fingerprint"] != "SHA256:VIwCu6DzE9NOFRslfQ76hfakSJYLU4UNihsbpxtfJRY" ||
		asked.Channel != imprint.NetworkEST || asked.Detail["serial"] != renewed.Detail["serial"] || renewed.Detail["log"] == "" {
		t.Errorf("events %+v, %+v", asked, renewed)
	}
	// What it came with is still good, and a renewal renews both.
	if _, err := w.engine.Authenticate(t.Context(), who); err != nil {
		t.Error(err)
	}
	w.now = w.now.Add(enrol.DefaultLifetime * 2 / 3)
	i, err := w.engine.Enrol(t.Context(), m.est(id, imprint.Secret{}))
	if err != nil || i.Enrolment.Certificate.SSH != "certificate for "+sshEd25519 || len(w.signer.grants) != 3 {
		t.Errorf("after a renewal: %+v, %v", i.Enrolment.Certificate, err)
	}
}

// TestSSHHostRefusals: nothing is signed for whoever does not show a living
// certificate of the present generation, nor for what is no key.
func TestSSHHostRefusals(t *testing.T) {
	t.Parallel()
	w, m := newWorld(), newMachine(t)
	id := w.reserve(t)
	good := w.overEST(t, id, m)
	for name, tt := range map[string]struct {
		change func(*imprint.Identity)
		line   string
		want   imprint.Kind
	}{
		"another tenant":     {func(who *imprint.Identity) { who.Tenant = "other" }, sshEd25519, imprint.Denied},
		"another generation": {func(who *imprint.Identity) { who.Generation = 2 }, sshEd25519, imprint.Denied},
		"another key":        {func(who *imprint.Identity) { who.Key = newMachine(t).id }, sshEd25519, imprint.Denied},
		"another serial":     {func(who *imprint.Identity) { who.Serial = "1" }, sshEd25519, imprint.Denied},
		"unknown instance":   {func(who *imprint.Identity) { who.Instance = imprint.NewInstanceID() }, sshEd25519, imprint.NotFound},
		"no key":             {nil, "", imprint.Invalid},
		"two lines":          {nil, sshEd25519 + "\n" + sshEd25519, imprint.Invalid},
		"a weak type":        {nil, "ssh-dss AAAAB3NzaC1kc3M=", imprint.Invalid},
		"an oversize line":   {nil, sshEd25519 + strings.Repeat(" ", imprint.MaxSSHKeyLen), imprint.Invalid},
	} {
		who := good
		if tt.change != nil {
			tt.change(&who)
		}
		_, err := w.engine.CertifySSHHost(t.Context(), who, tt.line)
		if imprint.KindOf(err) != tt.want || err == nil {
			t.Errorf("%s: %v (%v), want %v", name, err, imprint.KindOf(err), tt.want)
		}
	}
	if _, err := w.engine.Revoke(t.Context(), id, "sold", "ann"); err != nil {
		t.Fatal(err)
	}
	_, err := w.engine.CertifySSHHost(t.Context(), good, sshEd25519)
	wantKind(t, err, imprint.Conflict)
	if len(w.signer.grants) != 1 || w.get(id).Enrolment.Claim.SSHHost != "" {
		t.Errorf("%d signed for %+v", len(w.signer.grants), w.get(id).Enrolment.Claim)
	}
}

// TestSSHHostKeyChanges: a machine may make new host keys, but not without end,
// and every certificate that it had is revoked with it.
func TestSSHHostKeyChanges(t *testing.T) {
	t.Parallel()
	w, m := newWorld(), newMachine(t)
	id := w.reserve(t)
	who := w.overEST(t, id, m)
	for n := range enrol.MaxEarlier {
		key := newSSHKey(t)
		i, err := w.engine.CertifySSHHost(t.Context(), who, key)
		if err != nil || i.Enrolment.Certificate.SSH != "certificate for "+key {
			t.Fatalf("change %d: %v", n, err)
		}
		w.now = w.now.Add(time.Minute)
	}
	_, err := w.engine.CertifySSHHost(t.Context(), who, newSSHKey(t))
	wantKind(t, err, imprint.Conflict)
	if imprint.HintOf(err) == "" || len(w.signer.grants) != 1+enrol.MaxEarlier {
		t.Errorf("%d signed; hint %q", len(w.signer.grants), imprint.HintOf(err))
	}
	if _, err := w.engine.Revoke(t.Context(), id, "sold", "ann"); err != nil {
		t.Fatal(err)
	}
	if len(w.store.revoked) != 1+enrol.MaxEarlier {
		t.Errorf("%d of %d certificates are revoked", len(w.store.revoked), 1+enrol.MaxEarlier)
	}
}

// TestSSHHostAfterAFault: a signer that failed leaves a claim whose certificate
// the next request makes, with the key that was asked for last.
func TestSSHHostAfterAFault(t *testing.T) {
	t.Parallel()
	w, m := newWorld(), newMachine(t)
	id := w.reserve(t)
	who := w.overEST(t, id, m)
	first, second := newSSHKey(t), newSSHKey(t)
	w.signer.fail = errors.New("the disk of the log is full")
	if _, err := w.engine.CertifySSHHost(t.Context(), who, first); err == nil {
		t.Fatal("certified without a signer")
	}
	if c := w.get(id).Enrolment.Certificate; c.Serial != who.Serial || c.SSH != "" {
		t.Errorf("after the fault the machine has %+v", c)
	}
	i, err := w.engine.CertifySSHHost(t.Context(), who, second)
	if err != nil || i.Enrolment.Certificate.SSH != "certificate for "+second {
		t.Fatalf("%+v, %v", i, err)
	}
	if len(w.store.revoked) != 0 { // for the first key nothing was ever issued
		t.Errorf("revoked %v", w.store.revoked)
	}
}

// TestSSHHostTwoServers: two servers asked at once for two keys issue for one
// after the other; what is stored is for the key of the claim.
func TestSSHHostTwoServers(t *testing.T) {
	t.Parallel()
	w, m := newWorld(), newMachine(t)
	id := w.reserve(t)
	who := w.overEST(t, id, m)
	first, second := newSSHKey(t), newSSHKey(t)
	once := true
	ctx := context.WithValue(t.Context(), pauseKey{}, func(at string) {
		if at == "signed" && once {
			once = false
			if _, err := w.newEngine().CertifySSHHost(t.Context(), who, second); err != nil {
				t.Error(err)
			}
		}
	})
	i, err := w.engine.CertifySSHHost(ctx, who, first)
	if err != nil || i.Enrolment.Certificate.SSH != "certificate for "+first {
		t.Errorf("%+v, %v", i, err)
	}
	e := w.get(id).Enrolment
	if e.Claim.SSHHost != first || e.Certificate.Serial != e.Claim.Serial {
		t.Errorf("claim %+v, certificate %+v", e.Claim, e.Certificate)
	}
}

// TestHolderLearnsTheEnd: whoever shows the claimed key learns how its
// generation ended; everybody else is denied without a reason.
func TestHolderLearnsTheEnd(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		end  func(*world, imprint.InstanceID) error
		want imprint.Kind
		says string
	}{
		"revoked": {func(w *world, id imprint.InstanceID) error {
			_, err := w.engine.Revoke(t.Context(), id, "sold", "ann")
			return err
		}, imprint.Conflict, "is revoked: sold"},
		"contested": {func(w *world, id imprint.InstanceID) error {
			if _, err := w.engine.Enrol(t.Context(), newMachine(t).up(id)); imprint.KindOf(err) != imprint.Contested {
				return err
			}
			return nil
		}, imprint.Contested, "is contested"},
	} {
		t.Run(name, func(t *testing.T) {
			w, m := newWorld(), newMachine(t)
			id := w.reserve(t)
			who := w.overEST(t, id, m)
			if err := tt.end(w, id); err != nil {
				t.Fatal(err)
			}
			i, err := w.engine.Authenticate(t.Context(), who)
			if imprint.KindOf(err) != tt.want || i == nil || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("its holder: %v, %v", i, err)
			}
			who.Key = newMachine(t).id
			if i, err := w.engine.Authenticate(t.Context(), who); i != nil || imprint.KindOf(err) != imprint.Denied || strings.Contains(err.Error(), name) {
				t.Errorf("a stranger: %v, %v", i, err)
			}
		})
	}
}
