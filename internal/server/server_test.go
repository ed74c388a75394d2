package server

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"imprint"
	"imprint/api"
	"imprint/internal/manifest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func checkSpec(s *imprint.Spec) error { return manifest.Check(s) }

func prefixes(all ...string) (out []netip.Prefix) {
	for _, p := range all {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

func web(name string) imprint.Spec {
	return imprint.Spec{
		Name: imprint.InstanceName(name), DNSNames: []string{name + ".lab.internal"},
		Params: []imprint.Param{
			{Name: "motd", Visibility: imprint.Public, Value: "hello"},
			{Name: "db-password", Visibility: imprint.Private},
			{Name: "join-key", Visibility: imprint.SecretOnly},
		},
	}
}

func values() map[string]imprint.Secret {
	return map[string]imprint.Secret{
		"db-password": imprint.NewSecret([]byte("canary-private")),
		"join-key":    imprint.NewSecret([]byte("canary-secret \x00\xff")),
	}
}

func must[T any](t *testing.T) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// A value reaches the place where its visibility wants it, and nothing else.
func TestCreate(t *testing.T) {
	t.Parallel()
	r, ctx := start(t), t.Context()
	created := must[*api.Created](t)(r.client.Create(ctx, web("web-1"), values(), false))
	i := created.Instance
	if !imprint.ValidID(string(i.ID)) || i.Ref != "web-1" || i.Enrolment.State != imprint.Reserved || len(created.Missing) != 0 {
		t.Errorf("created %+v", created)
	}
	if i.Spec.Host != "hv-1" || i.Spec.Tenant != "default" || !slices.Equal(i.Spec.Channels, []imprint.ChannelKind{imprint.VirtioSerial, imprint.Serial2}) {
		t.Errorf("defaults: %+v", i.Spec)
	}
	if got := r.private[string(i.ID)+"/db-password"]; got != "canary-private" {
		t.Errorf("private value: %q", got)
	}
	if got := r.secret[string(i.ID)+"/join-key"]; got != "canary-secret \x00\xff" {
		t.Errorf("secret value: %q", got)
	}
	for _, ref := range []string{"web-1", "default/web-1", string(i.ID)} {
		if got := must[*api.Instance](t)(r.client.Get(ctx, ref)); got.ID != i.ID {
			t.Errorf("%s is %s", ref, got.ID)
		}
	}
	d := must[*api.Description](t)(r.client.Describe(ctx, "web-1"))
	if len(d.Timeline) != 1 || !strings.HasPrefix(d.Timeline[0].Detail["by"], "uid ") {
		t.Errorf("timeline: %+v", d.Timeline)
	}
	if want := (&world{}).Ports(ctx, nil); !reflect.DeepEqual(d.Ports, want) {
		t.Errorf("ports %+v, want %+v", d.Ports, want)
	}
	shown, _ := json.Marshal(d)
	for _, canary := range []string{"canary", "tokenHash"} {
		if bytes.Contains(shown, []byte(canary)) || strings.Contains(r.log.String(), canary) {
			t.Errorf("%s is in the answer or the log", canary)
		}
	}
}

// A machine keeps the identifier that it has; one that is none, or somebody's, is
// refused alike by a dry run, and nothing is left behind.
func TestCreateAs(t *testing.T) {
	t.Parallel()
	r, ctx := start(t), t.Context()
	const id, other = "7c9e6679-7425-40de-944b-e07fc1f90ae7", "17c6a3d1-92b7-4d1e-b1a3-3f5ec9c3a001"
	if dry := must[*api.Created](t)(r.client.CreateAs(ctx, id, web("web-1"), values(), true)); dry.Instance.ID != id {
		t.Errorf("dry run: %+v", dry)
	}
	created := must[*api.Created](t)(r.client.CreateAs(ctx, id, web("web-1"), values(), false))
	if created.Instance.ID != id || r.private[id+"/db-password"] != "canary-private" || r.secret[id+"/join-key"] != "canary-secret \x00\xff" {
		t.Errorf("created %+v", created)
	}
	for bad, want := range map[imprint.InstanceID]imprint.Kind{
		id: imprint.Exists, "7C9E6679-7425-40DE-944B-E07FC1F90AE7": imprint.Invalid, "web-2": imprint.Invalid,
		"00000000-0000-0000-0000-000000000000": imprint.Invalid, imprint.InstanceID(strings.Repeat("f", 200<<10)): imprint.Invalid,
	} {
		for _, dryRun := range []bool{true, false} {
			_, err := r.client.CreateAs(ctx, bad, web("web-2"), values(), dryRun)
			if err == nil || imprint.KindOf(err) != want || imprint.HintOf(err) == "" || strings.Contains(err.Error(), "\n") || len(err.Error()) > 1000 {
				t.Errorf("%.40s, dry run %t: %.1000v", bad, dryRun, err)
			}
		}
	}
	if _, err := r.client.Get(ctx, "web-2"); imprint.KindOf(err) != imprint.NotFound {
		t.Errorf("web-2: %v", err)
	}
	if again := must[*api.Created](t)(r.client.CreateAs(ctx, other, web("web-2"), values(), false)); again.Instance.ID != other {
		t.Errorf("created %+v", again)
	}
}

// Whether a host is connected shows on each instance that is placed on it.
func TestHostsThatAreAway(t *testing.T) {
	t.Parallel()
	r, ctx := start(t), t.Context()
	for name, host := range map[string]imprint.HostName{"here": "", "there": "away.example.net"} {
		spec := web(name)
		spec.Name, spec.Host = imprint.InstanceName(name), host
		must[*api.Created](t)(r.client.Create(ctx, spec, values(), false))
	}
	for name, away := range map[string]bool{"here": false, "there": true} {
		d := must[*api.Description](t)(r.client.Describe(ctx, name))
		if got := must[*api.Instance](t)(r.client.Get(ctx, name)); got.HostAway != away || d.Instance.HostAway != away || (d.Host.State == api.HostAway) != away {
			t.Errorf("%s: %t, described as %+v", name, got.HostAway, d.Host)
		}
	}
	for _, i := range must[*api.Page](t)(r.client.List(ctx, api.Query{})).Instances {
		if i.HostAway != (i.Ref == "there") {
			t.Errorf("%s in a list: %t", i.Ref, i.HostAway)
		}
	}
}

// Each bad request is refused with its kind, its words and its hint, and leaves
// nothing behind.
func TestCreateRefuses(t *testing.T) {
	t.Parallel()
	r, ctx := start(t), t.Context()
	must[*api.Created](t)(r.client.Create(ctx, web("taken"), values(), false))
	with := func(f func(*imprint.Spec, map[string]imprint.Secret)) func() (imprint.Spec, map[string]imprint.Secret) {
		return func() (imprint.Spec, map[string]imprint.Secret) {
			s, v := web("web-1"), values()
			f(&s, v)
			return s, v
		}
	}
	for name, test := range map[string]struct {
		make       func() (imprint.Spec, map[string]imprint.Secret)
		kind       imprint.Kind
		text, hint string
	}{
		"taken":      {with(func(s *imprint.Spec, _ map[string]imprint.Secret) { s.Name = "taken" }), imprint.Exists, "has an instance of that name", ""},
		"characters": {with(func(s *imprint.Spec, _ map[string]imprint.Secret) { s.Name = "Web_1" }), imprint.Invalid, `name "Web_1" contains 'W'`, ""},
		"no name":    {with(func(s *imprint.Spec, _ map[string]imprint.Secret) { s.Name = "" }), imprint.Invalid, "name is missing", ""},
		"outside":    {with(func(s *imprint.Spec, _ map[string]imprint.Secret) { s.DNSNames = []string{"web.example.com"} }), imprint.Invalid, "outside the domains of tenant default", "the tenant's domains are internal"},
		"suffix":     {with(func(s *imprint.Spec, _ map[string]imprint.Secret) { s.DNSNames = []string{"notinternal"} }), imprint.Invalid, "outside the domains", "internal"},
		"address": {with(func(s *imprint.Spec, _ map[string]imprint.Secret) {
			s.IPs = []netip.Addr{netip.MustParseAddr("192.0.2.1")}
		}), imprint.Invalid, "outside the networks", "the tenant's networks are 10.0.0.0/8"},
		"no networks": {with(func(s *imprint.Spec, _ map[string]imprint.Secret) {
			s.Tenant, s.DNSNames, s.IPs = "acme", nil, []netip.Addr{netip.MustParseAddr("10.0.0.1")}
		}), imprint.Invalid, "outside the networks", "the tenant has no networks at all"},
		"tenant":     {with(func(s *imprint.Spec, _ map[string]imprint.Secret) { s.Tenant = "nobody" }), imprint.NotFound, "no such tenant", "acme and default"},
		"no value":   {with(func(_ *imprint.Spec, v map[string]imprint.Secret) { delete(v, "db-password") }), imprint.Invalid, "parameter db-password: it is private and has no value", "manifest"},
		"undeclared": {with(func(_ *imprint.Spec, v map[string]imprint.Secret) { v["other"] = v["join-key"] }), imprint.Invalid, "parameter other: it has a value but is not in the spec", ""},
		"public":     {with(func(_ *imprint.Spec, v map[string]imprint.Secret) { v["motd"] = v["join-key"] }), imprint.Invalid, "it is public", ""},
		"too long": {with(func(_ *imprint.Spec, v map[string]imprint.Secret) {
			v["join-key"] = imprint.NewSecret(make([]byte, imprint.MaxParamLen+1))
		}), imprint.Invalid, "65537 bytes; 65536 are allowed", ""},
		"audience": {with(func(s *imprint.Spec, _ map[string]imprint.Secret) { s.Channels = []imprint.ChannelKind{imprint.File} }), imprint.Invalid, "could not reach the machine", ""},
	} {
		for _, dryRun := range []bool{true, false} {
			spec, v := test.make()
			_, err := r.client.Create(ctx, spec, v, dryRun)
			if imprint.KindOf(err) != test.kind || !strings.Contains(fmt.Sprint(err), test.text) || !strings.Contains(imprint.HintOf(err), test.hint) {
				t.Errorf("%s: got %v (%v; hint %q), want %v with %q", name, err, imprint.KindOf(err), imprint.HintOf(err), test.kind, test.text)
			}
			if strings.Contains(fmt.Sprint(err), "canary") {
				t.Errorf("%s: the error shows a value", name)
			}
		}
	}
	if page := must[*api.Page](t)(r.client.List(ctx, api.Query{})); len(page.Instances) != 1 {
		t.Errorf("%d instances are left behind", len(page.Instances)-1)
	}
}

func TestDryRun(t *testing.T) {
	t.Parallel()
	r := start(t)
	v := values()
	delete(v, "join-key")
	out := must[*api.Created](t)(r.client.Create(t.Context(), web("web-1"), v, true))
	if out.Instance.ID != "" || out.Instance.Spec.Host != "hv-1" || !slices.Equal(out.Missing, []string{"join-key"}) {
		t.Errorf("dry run: %+v", out)
	}
	if len(r.instances) != 0 {
		t.Error("a dry run created something")
	}
}

// A host that does not take a secret value costs the value, not the instance.
func TestSecretOfUnreachableHost(t *testing.T) {
	t.Parallel()
	r, ctx := start(t), t.Context()
	spec := web("web-1")
	spec.Host = "hv-2"
	out := must[*api.Created](t)(r.client.Create(ctx, spec, values(), false))
	if !slices.Equal(out.Missing, []string{"join-key"}) {
		t.Errorf("missing: %v", out.Missing)
	}
	err := r.client.PutParam(ctx, "web-1", "join-key", values()["join-key"])
	if imprint.KindOf(err) != imprint.Unavailable || !strings.Contains(err.Error(), "hv-2") {
		t.Errorf("got %v", err)
	}
}

func TestParams(t *testing.T) {
	t.Parallel()
	r, ctx := start(t), t.Context()
	id := must[*api.Created](t)(r.client.Create(ctx, web("web-1"), values(), false)).Instance.ID
	for _, name := range []string{"motd", "db-password", "join-key"} {
		if err := r.client.PutParam(ctx, "web-1", name, imprint.NewSecret([]byte("new "+name))); err != nil {
			t.Fatal(err)
		}
	}
	if r.private[string(id)+"/db-password"] != "new db-password" || r.secret[string(id)+"/join-key"] != "new join-key" {
		t.Error("values did not arrive")
	}
	if i := must[*api.Instance](t)(r.client.Get(ctx, "web-1")); i.Spec.Params[0].Value != "new motd" {
		t.Errorf("public value: %+v", i.Spec.Params)
	}
	err := r.client.PutParam(ctx, "web-1", "no such", imprint.NewSecret([]byte("x")))
	if imprint.KindOf(err) != imprint.NotFound || imprint.HintOf(err) != "the instance has the parameters motd, db-password, join-key; to declare another say who may read it, with --visibility" {
		t.Errorf("got %v, hint %q", err, imprint.HintOf(err))
	}
}

// What the OS definition says of parameters holds whenever one gets a value, and
// what it does not allow changes nothing.
func TestParamsByTheOSDefinition(t *testing.T) {
	t.Parallel()
	r, ctx := start(t), t.Context()
	spec := web("web-1")
	spec.OS = &imprint.OS{Name: "demo"}
	refused := func(what string, kind imprint.Kind, err error) {
		t.Helper()
		if imprint.KindOf(err) != kind || err == nil || !strings.Contains(err.Error(), "parameter size is required, and a number") {
			t.Errorf("%s: %v", what, err)
		}
	}
	_, err := r.client.Create(ctx, spec, values(), true)
	refused("created without", imprint.Invalid, err)
	spec.Params = append(spec.Params, imprint.Param{Name: "size", Visibility: imprint.Private})
	given := values()
	given["size"] = imprint.NewSecret([]byte("x"))
	_, err = r.client.Create(ctx, spec, given, false)
	refused("created with a word", imprint.Invalid, err)
	given["size"] = imprint.NewSecret([]byte("7"))
	id := must[*api.Created](t)(r.client.Create(ctx, spec, given, false)).Instance.ID

	word := imprint.NewSecret([]byte("x"))
	refused("set", imprint.Invalid, r.client.PutParam(ctx, "web-1", "size", word))
	refused("made public", imprint.Invalid, r.client.DeclareParam(ctx, "web-1", "size", imprint.Public, word))
	refused("removed", imprint.Conflict, r.client.DeleteParam(ctx, "web-1", "size"))
	_, err = r.client.RebirthWith(ctx, "web-1", map[string]imprint.Secret{"size": word})
	refused("reborn", imprint.Invalid, err)
	i := must[*api.Instance](t)(r.client.Get(ctx, "web-1"))
	if i.Generation != 1 || r.private[string(id)+"/size"] != "7" || len(i.Spec.Params) != len(spec.Params) {
		t.Errorf("a refusal changed the instance: %+v", i)
	}

	number := imprint.NewSecret([]byte("8"))
	if err := r.client.DeclareParam(ctx, "web-1", "size", imprint.Public, number); err != nil {
		t.Error(err)
	}
	out := must[*api.Created](t)(r.client.RebirthWith(ctx, "web-1", map[string]imprint.Secret{"size": imprint.NewSecret([]byte("9")), "join-key": number}))
	if p := out.Instance.Spec.Params[len(spec.Params)-1]; p.Value != "9" || r.secret[string(id)+"/join-key"] != "8" || out.Instance.Generation != 2 {
		t.Errorf("reborn with %+v", out.Instance.Spec.Params)
	}
	err = r.client.DeclareParam(ctx, "web-1", "bad name", imprint.Public, number)
	if imprint.KindOf(err) != imprint.Invalid {
		t.Errorf("a name that no parameter has: %v", err)
	}
	if err := r.client.DeclareParam(ctx, "web-1", "x", "mine", number); imprint.KindOf(err) != imprint.Invalid {
		t.Errorf("a visibility that does not exist: %v", err)
	}
}

func TestOperations(t *testing.T) {
	t.Parallel()
	r, ctx := start(t), t.Context()
	spec := web("db-1")
	spec.Tenant, spec.DNSNames = "acme", []string{"db-1.acme.example"}
	must[*api.Created](t)(r.client.Create(ctx, spec, values(), false))
	const ref = "acme/db-1" // the slash survives the way

	if _, err := r.client.Approve(ctx, ref); imprint.KindOf(err) != imprint.Conflict {
		t.Errorf("approve: %v", err)
	}
	if i := must[*api.Instance](t)(r.client.Revoke(ctx, ref, "stolen")); i.Enrolment.State != imprint.Revoked || i.Enrolment.Reason != "stolen" {
		t.Errorf("revoke: %+v", i.Enrolment)
	}
	if i := must[*api.Instance](t)(r.client.Rebirth(ctx, ref)); i.Generation != 2 {
		t.Errorf("rebirth: generation %d", i.Generation)
	}
	if events := must[[]imprint.Event](t)(r.client.Timeline(ctx, ref, 1)); len(events) != 2 || events[0].Kind != imprint.EventRevoked {
		t.Errorf("timeline: %+v", events)
	}
	ttl, _ := imprint.ParseDuration("2d")
	if token := must[imprint.Secret](t)(r.client.Token(ctx, ref, ttl)); string(token.Reveal()) != "token for 48h0m0s" {
		t.Errorf("token: %q", token.Reveal())
	}
	if p := must[imprint.Secret](t)(r.client.Payload(ctx, ref, 0)); !strings.HasPrefix(string(p.Reveal()), `{"imprint":1`) {
		t.Errorf("payload: %q", p.Reveal())
	}
	m := must[*api.Medium](t)(r.client.Medium(ctx, ref, api.MediumRequest{Dialect: "openstack", Carrier: "iso", TTL: ttl}))
	if m.Number != 7 || !slices.Equal(m.CheckIn, []string{"https://a:1", "https://b:2"}) || m.Label != "openstack on iso" || !m.Token || m.Time.Unix() != 1e9 || !slices.Equal(m.Omitted, []string{"db-password", "user data"}) ||
		len(m.Files) != 2 || string(m.Files["a/b.json"].Reveal()) != string(must[*api.Instance](t)(r.client.Get(ctx, ref)).ID) || len(m.Files["empty"].Reveal()) != 0 {
		t.Errorf("medium: %+v", m)
	}
	if m := must[*api.Medium](t)(r.client.Medium(ctx, ref, api.MediumRequest{})); m.Token {
		t.Error("a medium without a token has one")
	}
	if err := r.client.SettleMedium(ctx, ref, m.Number, api.MediumOutcome{State: imprint.MediumTaken, Detail: "blanked"}); err != nil {
		t.Error(err)
	}
	if got := must[*api.Instance](t)(r.client.Get(ctx, ref)).Media; len(got) != 1 || got[0].Number != 7 || got[0].State != imprint.MediumTaken || got[0].Detail != "blanked" || got[0].By == "" {
		t.Errorf("media: %+v", got)
	}
	step := api.InstallReport{ID: imprint.DigestOf(nil), Generation: 2, Step: imprint.InstallFetched, Host: "hv-1", Disk: "/dev/vg/web-1",
		Image: "https://images.example/d.qcow2", Digest: imprint.DigestOf([]byte("d")), Detail: "2 GiB"}
	want := imprint.Installation{ID: step.ID, Generation: 2, Step: step.Step, Host: step.Host, Disk: step.Disk, Image: step.Image, Digest: step.Digest, Detail: step.Detail, By: fmt.Sprintf("uid %d", os.Getuid())}
	if i := must[*api.Instance](t)(r.client.ReportInstallation(ctx, ref, step)); i.Installation == nil || *i.Installation != want {
		t.Errorf("installation: %+v; want %+v", i.Installation, want)
	}
	kernel := imprint.InstallSetup{Kernel: "/srv/vmlinuz", Append: "auto=true"}
	if i := must[*api.Instance](t)(r.client.SetUpInstallation(ctx, ref, kernel)); i.InstallSetup == nil || i.InstallSetup.Kernel != kernel.Kernel || i.InstallSetup.Append != kernel.Append {
		t.Errorf("setup: %+v", i.InstallSetup)
	}
	if _, err := r.client.SetUpInstallation(ctx, ref, imprint.InstallSetup{Kernel: "vmlinuz"}); imprint.KindOf(err) != imprint.Invalid {
		t.Errorf("a setup that no machine can have: %v", err)
	}
	if i := must[*api.Instance](t)(r.client.ClearInstallSetup(ctx, ref)); i.InstallSetup != nil {
		t.Errorf("a cleared setup: %+v", i.InstallSetup)
	}
	step.Generation = 1
	if _, err := r.client.ReportInstallation(ctx, ref, step); imprint.KindOf(err) != imprint.Conflict {
		t.Errorf("an installation of another generation: %v", err)
	}
	for range 2 {
		if err := r.client.WritePipe(ctx, ref, imprint.DefaultPipe, "", []byte("ping\x00")); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.client.WritePipe(ctx, ref, imprint.DefaultPipe, "", []byte("x")); imprint.KindOf(err) != imprint.Exhausted {
		t.Errorf("a full pipe: %v", err)
	}
	if err := r.client.WritePipe(ctx, ref, "none/of these", "", []byte("x")); imprint.KindOf(err) != imprint.NotFound {
		t.Errorf("no such pipe: %v", err)
	}
	for range 2 { // reading takes nothing
		message, receipt, err := r.client.ReadPipe(ctx, ref, imprint.DefaultPipe, 0)
		if err != nil || string(message) != "ping\x00" || receipt == "" {
			t.Errorf("read %q with receipt %q, %v", message, receipt, err)
		}
		if err := r.client.TakePipe(ctx, ref, imprint.DefaultPipe, "another"); err != nil {
			t.Error(err)
		}
	}
	if p := must[[]api.Pipe](t)(r.client.Pipes(ctx, ref)); len(p) != 1 || p[0].Name != imprint.DefaultPipe || p[0].FromMachine.Messages != 2 {
		t.Errorf("pipes %+v", p)
	}
	for range 2 {
		if err := r.client.TakePipe(ctx, ref, imprint.DefaultPipe, string(imprint.DigestOf([]byte("ping\x00")))); err != nil {
			t.Error(err)
		}
	}
	if message, receipt, err := r.client.ReadPipe(ctx, ref, imprint.DefaultPipe, 0); len(message) != 0 || receipt != "" || err != nil {
		t.Errorf("an empty pipe: %q, %q, %v", message, receipt, err)
	}
	if err := r.client.WritePipe(ctx, ref, imprint.DefaultPipe, "", make([]byte, imprint.MaxMessage+1)); err == nil || !strings.Contains(err.Error(), "too large") {
		t.Errorf("a message that is too long: %v", err)
	}
	if err := r.client.WritePipe(ctx, ref, imprint.DefaultPipe, "a?b&c=d", make([]byte, imprint.MaxMessage)); err != nil {
		t.Errorf("the longest message: %v", err)
	}
	if err := r.client.Delete(ctx, ref); err != nil {
		t.Fatal(err)
	}
	if _, err := r.client.Get(ctx, ref); imprint.KindOf(err) != imprint.NotFound {
		t.Errorf("after delete: %v", err)
	}
	if _, err := r.client.Get(ctx, "../../etc"); imprint.KindOf(err) != imprint.NotFound {
		t.Errorf("a ref that is no name: %v", err)
	}
	info := must[*api.Info](t)(r.client.Info(ctx))
	if info.Role != "operator" || info.Host != "hv-1" || info.Version != "v0.0.0-test" {
		t.Errorf("info: %+v", info)
	}
}

func TestAuthorities(t *testing.T) {
	t.Parallel()
	r, ctx := start(t), t.Context()
	if a := must[*api.Authority](t)(r.client.Authority(ctx, "")); a.Tenant != "default" || !a.RootKeyHere {
		t.Errorf("authority: %+v", a)
	}
	if _, err := r.client.Authority(ctx, "nobody"); imprint.KindOf(err) != imprint.NotFound {
		t.Errorf("unknown tenant: %v", err)
	}
	if b := must[[]byte](t)(r.client.Bundle(ctx, "")); !bytes.HasPrefix(b, []byte("-----BEGIN")) {
		t.Errorf("bundle: %q", b)
	}
	if b := must[[]byte](t)(r.client.CRL(ctx, "")); len(b) != 2 {
		t.Errorf("crl: %x", b)
	}
	key := must[imprint.Secret](t)(r.client.ExportRoot(ctx, ""))
	if err := r.client.DropRoot(ctx, ""); err != nil {
		t.Fatal(err)
	}
	if _, err := r.client.ExportRoot(ctx, ""); imprint.KindOf(err) != imprint.NotFound {
		t.Errorf("export after drop: %v", err)
	}
	if _, err := r.client.Reissue(ctx, "", imprint.Secret{}); imprint.KindOf(err) != imprint.Conflict || imprint.HintOf(err) == "" {
		t.Errorf("reissue without a key: %v", err)
	}
	must[*api.Authority](t)(r.client.Reissue(ctx, "", key))
	var tar bytes.Buffer
	if err := r.client.Log(ctx, &tar); err != nil || tar.String() != "checkpoint" {
		t.Errorf("log: %q, %v", tar.String(), err)
	}
	r.mu.Lock()
	r.fail = errors.New("the disk is gone")
	r.mu.Unlock()
	if err := r.client.Log(ctx, io.Discard); err == nil {
		t.Error("a log that was broken off looks whole")
	}
}

func TestPages(t *testing.T) {
	t.Parallel()
	r, ctx := start(t), t.Context()
	var want []string
	for n := range 5 {
		name := fmt.Sprintf("web-%d", n)
		want = append(want, name)
		must[*api.Created](t)(r.client.Create(ctx, imprint.Spec{Name: imprint.InstanceName(name)}, nil, false))
	}
	var got []string
	for i, err := range r.client.All(ctx, api.Query{Tenant: "default", Limit: 2}) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, i.Ref)
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if page := must[*api.Page](t)(r.client.List(ctx, api.Query{Host: "hv-2"})); len(page.Instances) != 0 || page.Next != "" {
		t.Errorf("another host's: %+v", page)
	}
}

func TestNoServer(t *testing.T) {
	t.Parallel()
	c := api.NewUnix(t.TempDir() + "/absent.sock")
	_, err := c.List(t.Context(), api.Query{})
	if imprint.KindOf(err) != imprint.Unavailable || imprint.HintOf(err) != "start it with: imprint serve" || !strings.Contains(err.Error(), "absent.sock") {
		t.Errorf("got %v, hint %q", err, imprint.HintOf(err))
	}
	if _, err := api.NewTLS("http://x", nil); imprint.KindOf(err) != imprint.Invalid {
		t.Errorf("http: %v", err)
	}
}
