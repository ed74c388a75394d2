package host_test

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"imprint"
	"imprint/internal/dialect"
	"imprint/internal/host"
)

func TestPrivateValueIsReadableUntilClosed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id := w.reserve("web-1")
	h, _ := start(t, w, runDir(t))
	c := connect(t, h, id, imprint.VirtioSerial)
	if v, err := c.Get(t.Context(), "imprint:param/token"); err != nil || string(v) != "private of web-1" {
		t.Errorf("private value: %q, %v", v, err)
	}
	if got := w.reported(); !slices.Equal(got, []string{"read token"}) {
		t.Errorf("reports %q", got)
	}
	if err := c.Put(t.Context(), "imprint:ready", []byte("ready")); err != nil {
		t.Fatal(err)
	}
	_, err := c.Get(t.Context(), "imprint:param/token")
	wantRefusal(t, err, "read token: the enrolment is closed; read imprint:sealed/token with the enrolled key")
	for _, state := range []imprint.State{imprint.Revoked, imprint.InDispute, imprint.Expired} {
		w.change(id, func(i *imprint.Instance) { i.Enrolment.State = state })
		w.settle(t)
		_, err := c.Get(t.Context(), "imprint:param/token")
		wantRefusal(t, err, "read token: the enrolment is "+string(state))
	}
}

func TestPrivateValueIsWithheldIfItsReadCannotBeRecorded(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id := w.reserve("web-1")
	h, _ := start(t, w, runDir(t), withSecret(t, id))
	m := newMachine(t, connect(t, h, id, imprint.VirtioSerial))
	if err := m.claim(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := m.confirm(t.Context()); err != nil {
		t.Fatal(err)
	}
	for err, sentence := range map[error]string{
		imprint.Errorf(imprint.Unavailable, "write", "etcd", "10.0.0.1: refused"):   "the control plane cannot be reached; ask again later",
		imprint.Errorf(imprint.Exhausted, "write", "/var/lib/imprint", "disk full"): "there is no room for this at present; ask again later",
		errors.New("nil pointer at 0xc000"):                                         "the host could not do this, and its log says why; ask again later",
	} {
		w.fail(err)
		_, err := m.Get(t.Context(), "imprint:param/token")
		wantRefusal(t, err, sentence)
		_, err = m.Get(t.Context(), "imprint:sealed/disk-key")
		wantRefusal(t, err, sentence)
	}
}

func TestSecretValueIsNeverInTheClear(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id := w.reserve("web-1")
	h, _ := start(t, w, runDir(t), withSecret(t, id))
	for _, kind := range []imprint.ChannelKind{imprint.VirtioSerial, imprint.Serial2} {
		_, err := connect(t, h, id, kind).Get(t.Context(), "imprint:param/disk-key")
		wantRefusal(t, err, fmt.Sprintf("read disk-key: a secret value is not sent in the clear over %s; enrol and read imprint:sealed/disk-key", kind))
	}
}

func TestStockKeysCarryPublicValuesOnly(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id := w.reserve("web-1")
	h, _ := start(t, w, runDir(t), withSecret(t, id))
	c := connect(t, h, id, imprint.Serial2)
	keys, err := c.Keys(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if wanted := []string{"hostname", "imprint:ca", "imprint:param/motd", "imprint:params", "imprint:payload", "imprint:state",
		"imprint:time", "motd", "role", "root_authorized_keys"}; !slices.Equal(keys, wanted) {
		t.Errorf("keys %q, want %q", keys, wanted)
	}
	for _, key := range append(keys, "sdc:uuid", "sdc:hostname", "sdc:vendor-data", "token", "disk-key") {
		v, err := c.Get(t.Context(), key)
		if strings.Contains(string(v), "private of") || strings.Contains(string(v), "secret of") {
			t.Errorf("%s is %q", key, v)
		}
		if name := key == "token" || key == "disk-key"; name != (imprint.KindOf(err) == imprint.NotFound) {
			t.Errorf("get %s: %v", key, err)
		}
	}
}

func TestSecretHasToBeGivenAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id := w.reserve("web-1")
	secrets := host.NewSecrets()
	h, _ := start(t, w, runDir(t), func(c *host.Config) { c.Secrets = secrets })
	m := newMachine(t, connect(t, h, id, imprint.VirtioSerial))
	_, err := m.enrol(t.Context())
	wantRefusal(t, err, "read disk-key: its value has to be given to the host again")
	list, err := m.Get(t.Context(), "imprint:params")
	if wanted := `[{"name":"motd","visibility":"public","available":true},{"name":"token","visibility":"private","available":true},{"name":"disk-key","visibility":"secret","available":false}]`; err != nil || string(list) != wanted {
		t.Errorf("params %s, %v", list, err)
	}
	if got := secrets.Missing(w.get(id)); !slices.Equal(got, []string{"disk-key"}) {
		t.Errorf("missing %q", got)
	}
	if err := secrets.Put(id, 1, "disk-key", imprint.NewSecret([]byte("again"))); err != nil {
		t.Fatal(err)
	}
	if v, err := m.sealed(t.Context(), "disk-key"); err != nil || v != "again" {
		t.Errorf("sealed disk-key: %q, %v", v, err)
	}
	if got := secrets.Missing(w.get(id)); len(got) != 0 {
		t.Errorf("missing %q", got)
	}
}

func TestSecretsBelongToOneGeneration(t *testing.T) {
	t.Parallel()
	s := host.NewSecrets()
	put := func(gen imprint.Generation, name string) error {
		return s.Put("id", gen, name, imprint.NewSecret([]byte(name)))
	}
	for gen, name := range []string{1: "one", 2: "two"} {
		if name == "" {
			continue
		}
		if err := put(imprint.Generation(gen), name); err != nil {
			t.Fatal(err)
		}
	}
	if _, ok := s.Get("id", 1, "one"); ok {
		t.Error("a secret of an earlier generation is still there")
	}
	if v, ok := s.Get("id", 2, "two"); !ok || string(v.Reveal()) != "two" {
		t.Errorf("got %q, %v", v.Reveal(), ok)
	}
	if err := put(1, "late"); imprint.KindOf(err) != imprint.Conflict {
		t.Errorf("put for an earlier generation: %v", err)
	}
	if err := s.Put("id", 2, "big", imprint.NewSecret(make([]byte, imprint.MaxParamLen+1))); imprint.KindOf(err) != imprint.Exhausted {
		t.Errorf("put too much: %v", err)
	}
	s.Drop("id")
	if _, ok := s.Get("id", 2, "two"); ok {
		t.Error("a dropped secret is still there")
	}
}

func TestControlPlaneAwayKeepsServingPublicValues(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id := w.reserve("web-1")
	h, _ := start(t, w, runDir(t))
	c := connect(t, h, id, imprint.VirtioSerial)
	w.fail(imprint.Errorf(imprint.Unavailable, "reach", "server", "away"))
	for _, key := range []string{"imprint:payload", "imprint:ca", "imprint:state", "imprint:param/motd", "sdc:uuid", "role"} {
		if v, err := c.Get(t.Context(), key); err != nil || len(v) == 0 {
			t.Errorf("get %s: %q, %v", key, v, err)
		}
	}
	w.fail(nil)
	for range 2 {
		if _, err := c.Get(t.Context(), "imprint:payload"); err != nil {
			t.Fatal(err)
		}
	}
	if got := w.reported(); !slices.Equal(got, []string{"delivered"}) {
		t.Errorf("reports %q; want the delivery once, when it could be recorded", got)
	}
}

func TestPayloadStaysTheSameUntilItsContentChanges(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id := w.reserve("web-1")
	now := time.Date(2026, 11, 21, 8, 0, 0, 0, time.UTC)
	facts, _ := w.facts("")
	h, _ := start(t, w, runDir(t), func(c *host.Config) {
		c.Now = func() time.Time { now = now.Add(time.Hour); return now }
		c.Facts = func(imprint.TenantName) (dialect.Facts, error) { return facts, nil }
	})
	c := connect(t, h, id, imprint.VirtioSerial)
	payload := func() string {
		b, err := c.Get(t.Context(), "imprint:payload")
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	first := payload() // which makes a new revision
	w.settle(t)
	if payload() != first {
		t.Error("the payload changed with the enrolment's state")
	}
	facts.CheckIn = []string{"https://elsewhere.example"}
	h.Refresh()
	if second := payload(); second == first || !strings.Contains(second, "elsewhere") {
		t.Errorf("the payload after its facts changed: %s", second)
	}
}

func TestPayloadThatDoesNotFitIsRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id := w.reserve("web-1")
	h, _ := start(t, w, runDir(t), func(c *host.Config) {
		c.Facts = func(imprint.TenantName) (dialect.Facts, error) {
			return dialect.Facts{CA: strings.Repeat("x", imprint.MaxPayload)}, nil
		}
	})
	c := connect(t, h, id, imprint.VirtioSerial)
	_, err := c.Get(t.Context(), "imprint:payload")
	if err == nil || !strings.Contains(err.Error(), "the limit is 4096") {
		t.Errorf("get imprint:payload: %v", err)
	}
	if _, err := c.Get(t.Context(), "sdc:uuid"); err != nil {
		t.Errorf("stock keys: %v", err)
	}
}

func TestGuestKeepsKeysOfItsOwn(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id := w.reserve("web-1")
	h, _ := start(t, w, runDir(t))
	c := connect(t, h, id, imprint.Serial2)
	ctx := t.Context()
	if err := c.Put(ctx, "com.example:note", []byte("mine")); err != nil {
		t.Fatal(err)
	}
	if v, err := connect(t, h, id, imprint.VirtioSerial).Get(ctx, "com.example:note"); err != nil || string(v) != "mine" {
		t.Errorf("over the other channel: %q, %v", v, err)
	}
	if keys, err := c.Keys(ctx); err != nil || !slices.Contains(keys, "com.example:note") {
		t.Errorf("keys %q, %v", keys, err)
	}
	for _, key := range []string{"hostname", "role", "motd", "user-script", "user-data", "cloud-init:user-data", "root_authorized_keys",
		"base64_all", "base64_keys", "b64-hostname", "imprint:payload", "imprint:nonsense", "imprint:param/token"} {
		wantRefusal(t, c.Put(ctx, key, []byte("x")), "set "+key+": the key belongs to the host")
		wantRefusal(t, c.Delete(ctx, key), "set "+key+": the key belongs to the host")
	}
	if err := c.Delete(ctx, "com.example:note"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Get(ctx, "com.example:note"); imprint.KindOf(err) != imprint.NotFound {
		t.Errorf("after delete: %v", err)
	}
}

func TestGuestsKeysAreLimited(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id := w.reserve("web-1")
	h, _ := start(t, w, runDir(t))
	c := connect(t, h, id, imprint.Serial2)
	for i := range 7 {
		if err := c.Put(t.Context(), fmt.Sprint("big", i), make([]byte, 9000)); err != nil {
			t.Fatal(err)
		}
	}
	wantRefusal(t, c.Put(t.Context(), "big7", make([]byte, 9000)), "put big7: all keys together may have 65536 bytes; delete one first")
	if err := c.Put(t.Context(), "big6", make([]byte, 8000)); err != nil {
		t.Errorf("replacing: %v", err)
	}
	for i := range 57 {
		if err := c.Put(t.Context(), fmt.Sprint("small", i), nil); err != nil {
			t.Fatal(err)
		}
	}
	wantRefusal(t, c.Put(t.Context(), "one-more", nil), "put one-more: 64 keys are kept; delete one first")
}

func TestRebirthForgetsWhatTheFormerLifeLeft(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id := w.reserve("web-1")
	secrets := host.NewSecrets()
	h, _ := start(t, w, runDir(t), func(c *host.Config) { c.Secrets = secrets }, withSecret(t, id))
	m := newMachine(t, connect(t, h, id, imprint.VirtioSerial))
	if _, err := m.enrol(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := m.Put(t.Context(), "note", []byte("mine")); err != nil {
		t.Fatal(err)
	}
	if err := h.WritePipe(id, imprint.DefaultPipe, "", []byte("message"), "operator"); err != nil {
		t.Fatal(err)
	}
	w.change(id, func(i *imprint.Instance) {
		i.Generation, i.Enrolment = 2, imprint.Enrolment{State: imprint.Reserved}
	})
	w.settle(t)
	for _, key := range []string{"note", "imprint:pipe", "imprint:certificate"} {
		if _, err := m.Get(t.Context(), key); imprint.KindOf(err) != imprint.NotFound {
			t.Errorf("%s after rebirth: %v", key, err)
		}
	}
	if got := secrets.Missing(w.get(id)); !slices.Equal(got, []string{"disk-key"}) {
		t.Errorf("missing %q", got)
	}
	if _, ok := secrets.Get(id, 1, "disk-key"); ok {
		t.Error("a secret of the former life is still in memory")
	}
	next := newMachine(t, m.Client)
	if err := next.claim(t.Context()); err != nil || next.payload.Generation != 2 {
		t.Errorf("the next life: generation %d, %v", next.payload.Generation, err)
	}
}

func TestGuestsAreIsolated(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	names := []imprint.InstanceName{"web-1", "web-2"}
	ids := map[imprint.InstanceName]imprint.InstanceID{}
	for _, name := range names {
		ids[name] = w.reserve(name)
	}
	h, _ := start(t, w, runDir(t), func(c *host.Config) {
		for name, id := range ids {
			if err := c.Secrets.Put(id, 1, "disk-key", imprint.NewSecret([]byte("secret of "+name))); err != nil {
				t.Fatal(err)
			}
		}
	})
	errs := make(chan error, 2)
	for _, name := range names {
		m := newMachine(t, connect(t, h, ids[name], imprint.VirtioSerial))
		go func() {
			values, err := m.enrol(t.Context())
			if wanted := map[string]string{"motd": "hello", "token": "private of " + string(name), "disk-key": "secret of " + string(name)}; err == nil && !maps.Equal(values, wanted) {
				err = fmt.Errorf("%s read %q", name, values)
			}
			if err == nil {
				err = m.Put(t.Context(), "note", []byte(name))
			}
			errs <- err
		}()
	}
	for range names {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	for _, name := range names {
		c := connect(t, h, ids[name], imprint.Serial2)
		for key, wanted := range map[string]string{"sdc:uuid": string(ids[name]), "hostname": string(name), "note": string(name)} {
			if v, err := c.Get(t.Context(), key); err != nil || string(v) != wanted {
				t.Errorf("%s: %s is %q, %v", name, key, v, err)
			}
		}
	}
}
