package daemon_test

import (
	"crypto/rand"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"imprint"
	"imprint/api"
)

// Ganeti's handling of parameters has defects that were observed (their numbers are
// those of the list that this product was specified by). Each is shown here to be
// impossible, or is where its test stands:
//
//	 1  a reused address leaks a predecessor's values   here
//	 2  a parameter names a host file that is served    here
//	 3  secrets for any process, again and again        here, and host.TestSecretValueIsNeverInTheClear
//	 4  after a restart nothing is served               here, and host.TestSecretHasToBeGivenAgain
//	 7  a change wipes other values                     here
//	13  debug logs show values                          TestCanaries
//	14  a failing script's output shows values          osdef.TestGanetiDefect14OutputIsScrubbed
//	15  private values in clear at rest, in exports     here, and TestCanaries
//	16  a reinstallation wipes stored values            here
//	17  a reinstallation cannot be given secrets        here

// eachSort gives spec a parameter of each visibility, and returns the values.
func eachSort(spec imprint.Spec) (imprint.Spec, map[string]imprint.Secret) {
	spec.Params = []imprint.Param{
		{Name: "size", Visibility: imprint.Public, Value: "7"},
		{Name: "db-password", Visibility: imprint.Private},
		{Name: "join-key", Visibility: imprint.SecretOnly},
	}
	return spec, map[string]imprint.Secret{
		"db-password": imprint.NewSecret([]byte("private-" + rand.Text())), "join-key": imprint.NewSecret([]byte("secret-" + rand.Text())),
	}
}

// installing reports that an installation of the present generation is under way.
func (s *serving) installing(t *testing.T, ref string) {
	t.Helper()
	_, err := s.ReportInstallation(t.Context(), ref, api.InstallReport{
		ID: imprint.DigestOf([]byte(ref)), Generation: s.get(t, ref).Generation, Step: imprint.InstallStarted,
	})
	if err != nil {
		t.Fatal(err)
	}
}

// A reinstallation, and one after it, without new values has the public and private
// ones that were stored. In Ganeti the first wipes them, and the second gets nothing.
func TestGanetiDefect16ReinstallKeepsStoredValues(t *testing.T) {
	t.Parallel()
	s := newSite(t).serve(t)
	spec, values := eachSort(serialOnly("web-1"))
	s.create(t, spec, values)
	for range 2 {
		out, err := s.RebirthWith(t.Context(), "web-1", nil)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(out.Missing, []string{"join-key"}) || out.Instance.Spec.Params[0].Value != "7" {
			t.Errorf("generation %d has %+v, and lacks %v", out.Instance.Generation, out.Instance.Spec.Params, out.Missing)
		}
	}
	// Also a new value of one leaves the other alone.
	if _, err := s.RebirthWith(t.Context(), "web-1", map[string]imprint.Secret{"size": imprint.NewSecret([]byte("8")), "join-key": values["join-key"]}); err != nil {
		t.Fatal(err)
	}
	s.installing(t, "web-1")
	got, err := s.InstallValues(t.Context(), "web-1")
	if err != nil {
		t.Fatal(err)
	}
	if !got["db-password"].Equal(values["db-password"]) || !got["join-key"].Equal(values["join-key"]) || len(got) != 2 {
		t.Error("the third reinstallation does not have the stored private and the new secret value")
	}
	if i := s.get(t, "web-1"); i.Generation != 4 || i.Spec.Params[0].Value != "8" {
		t.Errorf("generation %d has %+v", i.Generation, i.Spec.Params)
	}
}

// A reinstallation that lacks a secret is stopped before there is anything to
// install, which is before a disk is touched; the secret is named and can be given.
func TestGanetiDefect17ReinstallNamesTheSecretItLacks(t *testing.T) {
	t.Parallel()
	s := newSite(t).serve(t)
	spec, values := eachSort(serialOnly("web-1"))
	s.create(t, spec, values)
	if _, err := s.Rebirth(t.Context(), "web-1"); err != nil {
		t.Fatal(err)
	}
	s.installing(t, "web-1")
	got, err := s.InstallValues(t.Context(), "web-1")
	if imprint.KindOf(err) != imprint.Conflict || !strings.Contains(err.Error(), "join-key") || imprint.HintOf(err) != "a reinstallation needs secrets given again: imprint set web-1 join-key" || got != nil {
		t.Errorf("got %v, %v (%s)", got, err, imprint.HintOf(err))
	}
	if err := s.PutParam(t.Context(), "web-1", "join-key", values["join-key"]); err != nil {
		t.Fatal(err)
	}
	if got, err = s.InstallValues(t.Context(), "web-1"); err != nil || !got["join-key"].Equal(values["join-key"]) {
		t.Errorf("after it was given again: %v", err)
	}
	d, err := s.Describe(t.Context(), "web-1")
	if err != nil {
		t.Fatal(err)
	}
	last := d.Timeline[len(d.Timeline)-1]
	if last.Kind != imprint.EventRead || last.Detail["param"] != "db-password, join-key" || !strings.HasPrefix(last.Detail["by"], "uid ") {
		t.Errorf("on the timeline: %+v", last)
	}
}

// A value of which the declaration is not known, or one that cannot be, changes
// nothing: no generation begins, and no other value is lost.
func TestRebirthChecksValuesFirst(t *testing.T) {
	t.Parallel()
	s := newSite(t).serve(t)
	spec, values := eachSort(serialOnly("web-1"))
	s.create(t, spec, values)
	for name, kind := range map[string]imprint.Kind{"absent": imprint.NotFound, "db-password": imprint.Invalid} {
		value := imprint.NewSecret([]byte(strings.Repeat("x", imprint.MaxParamLen+1)))
		_, err := s.RebirthWith(t.Context(), "web-1", map[string]imprint.Secret{"size": imprint.NewSecret([]byte("9")), name: value})
		if imprint.KindOf(err) != kind {
			t.Errorf("%s: %v", name, err)
		}
	}
	if i := s.get(t, "web-1"); i.Generation != 1 || i.Spec.Params[0].Value != "7" {
		t.Errorf("generation %d has %+v", i.Generation, i.Spec.Params)
	}
}

// A change of one parameter, or of what the instance has, leaves all others: in
// Ganeti it makes the daemon forget the secret ones.
func TestGanetiDefect7ChangeLeavesOtherValues(t *testing.T) {
	t.Parallel()
	s := newSite(t).serve(t)
	spec, values := eachSort(serialOnly("web-1"))
	s.create(t, spec, values)
	change := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	change(s.PutParam(t.Context(), "web-1", "size", imprint.NewSecret([]byte("8"))))
	change(s.PutParam(t.Context(), "web-1", "db-password", imprint.NewSecret([]byte("another"))))
	change(s.DeclareParam(t.Context(), "web-1", "motd", imprint.Public, imprint.NewSecret([]byte("hello"))))
	change(s.DeleteParam(t.Context(), "web-1", "motd"))
	if _, err := s.SetUpInstallation(t.Context(), "web-1", imprint.InstallSetup{Kernel: "/vmlinuz"}); err != nil {
		t.Fatal(err)
	}
	s.installing(t, "web-1")
	got, err := s.InstallValues(t.Context(), "web-1")
	if err != nil || !got["join-key"].Equal(values["join-key"]) || string(got["db-password"].Reveal()) != "another" || len(got) != 2 {
		t.Errorf("after the changes: %d values, %v", len(got), err)
	}
}

// A parameter that becomes private, secret or public has its value where that
// belongs, and nowhere else any more.
func TestVisibilityChanges(t *testing.T) {
	t.Parallel()
	site := newSite(t)
	s := site.serve(t)
	s.create(t, serialOnly("web-1"), nil)
	canary := canaries{}
	set := func(v imprint.Visibility, value string) *api.Instance {
		t.Helper()
		if err := s.DeclareParam(t.Context(), "web-1", "token", v, imprint.NewSecret([]byte(value))); err != nil {
			t.Fatal(err)
		}
		i := s.get(t, "web-1")
		if len(i.Spec.Params) != 1 || i.Spec.Params[0].Visibility != v {
			t.Fatalf("declared as %s: %+v", v, i.Spec.Params)
		}
		return i
	}
	value := func() (imprint.Secret, error) {
		got, err := s.InstallValues(t.Context(), "web-1")
		return got["token"], err
	}
	s.installing(t, "web-1")
	if i := set(imprint.Public, "open"); i.Spec.Params[0].Value != "open" {
		t.Errorf("public: %+v", i.Spec.Params)
	}
	private := canary.fresh("private value")
	if i := set(imprint.Private, private); i.Spec.Params[0].Value != "" {
		t.Errorf("private: the spec has the value")
	}
	if v, err := value(); string(v.Reveal()) != private {
		t.Errorf("private: %v", err)
	}
	secret := canary.fresh("secret value")
	set(imprint.SecretOnly, secret)
	if v, err := value(); string(v.Reveal()) != secret {
		t.Errorf("secret: %v", err)
	}
	if i := set(imprint.Public, "open again"); i.Spec.Params[0].Value != "open again" {
		t.Errorf("public again: %+v", i.Spec.Params)
	}
	if got, err := s.InstallValues(t.Context(), "web-1"); err != nil || len(got) != 0 {
		t.Errorf("public again: %d values, %v", len(got), err)
	}
	set(imprint.SecretOnly, secret)
	if err := s.DeleteParam(t.Context(), "web-1", "token"); err != nil {
		t.Fatal(err)
	}
	set(imprint.SecretOnly, "x")
	if err := s.DeleteParam(t.Context(), "web-1", "token"); err != nil || len(s.get(t, "web-1").Spec.Params) != 0 {
		t.Errorf("removed: %v", err)
	}
	if err := s.DeleteParam(t.Context(), "web-1", "token"); imprint.KindOf(err) != imprint.NotFound {
		t.Errorf("removed twice: %v", err)
	}
	s.stop()
	if canary.searchFiles(t, site.config.Data, "") == 0 {
		t.Fatal("there are no files to search")
	}
	canary.search(t, "the log", []byte(site.log.String()))
}

// Values are those of an instance, not of its name, address or place: one that has
// all of these from a predecessor that was deleted reads nothing of it.
func TestGanetiDefect1SuccessorReadsNothing(t *testing.T) {
	t.Parallel()
	s := newSite(t).serve(t)
	spec, values := eachSort(serialOnly("web-1"))
	first := s.create(t, spec, values)
	if err := s.Delete(t.Context(), "web-1"); err != nil {
		t.Fatal(err)
	}
	spec.Params = []imprint.Param{{Name: "join-key", Visibility: imprint.SecretOnly}}
	second, err := s.Create(t.Context(), spec, nil, false)
	if err != nil {
		t.Fatal(err)
	}
	if second.Instance.ID == first.ID || !slices.Equal(second.Missing, []string{"join-key"}) {
		t.Errorf("the successor lacks %v", second.Missing)
	}
	s.installing(t, "web-1")
	if got, err := s.InstallValues(t.Context(), "web-1"); imprint.KindOf(err) != imprint.Conflict || len(got) != 0 {
		t.Errorf("the successor has %d values, %v", len(got), err)
	}
	// Nor is one that had no successor in the meantime of use to a private parameter.
	spec.Params = []imprint.Param{{Name: "db-password", Visibility: imprint.Private}}
	spec.Name = "web-2"
	if _, err := s.Create(t.Context(), spec, nil, false); imprint.KindOf(err) != imprint.Invalid {
		t.Errorf("a private parameter without a value: %v", err)
	}
}

// A parameter that names a file of the host is text, whatever its name: nothing that
// imprint renders or serves has what is in the file.
func TestGanetiDefect2ParametersNameNoHostFile(t *testing.T) {
	t.Parallel()
	site := newSite(t)
	s := site.serve(t)
	canary := canaries{}
	file := filepath.Join(t.TempDir(), "host-file")
	if err := os.WriteFile(file, []byte(canary.fresh("host file")), 0o644); err != nil {
		t.Fatal(err)
	}
	spec := serialOnly("web-1")
	for _, name := range []string{"os-package", "os-install-package", "os-image", "package"} {
		spec.Params = append(spec.Params, imprint.Param{Name: name, Visibility: imprint.Public, Value: file})
	}
	s.create(t, spec, nil)
	searched := 0
	for _, dialect := range []string{"openstack", "nocloud", "credentials", "native", "ganeti"} {
		m, err := s.Medium(t.Context(), "web-1", api.MediumRequest{Dialect: dialect, Carrier: "iso"})
		if err != nil {
			t.Logf("%s: %v", dialect, err)
			continue // it has no medium
		}
		searched++
		for name, content := range m.Files {
			canary.search(t, dialect+" "+name, content.Reveal())
		}
	}
	if searched < 3 {
		t.Errorf("only %d dialects were searched", searched)
	}
	s.stop()
	canary.searchFiles(t, site.config.Data, "")
	canary.searchFiles(t, site.config.Run, "")
}

// What leaves for whoever installs leaves once an installation is under way, and
// neither before nor after: not to anybody who may merely call.
func TestGanetiDefect3ValuesAreForAnInstallationOnly(t *testing.T) {
	t.Parallel()
	s := newSite(t).serve(t)
	spec, values := eachSort(serialOnly("web-1"))
	s.create(t, spec, values)
	refused := func(when string) {
		t.Helper()
		if got, err := s.InstallValues(t.Context(), "web-1"); imprint.KindOf(err) != imprint.Conflict || len(got) != 0 {
			t.Errorf("%s: %d values, %v", when, len(got), err)
		}
	}
	refused("before an installation")
	s.installing(t, "web-1")
	if _, err := s.InstallValues(t.Context(), "web-1"); err != nil {
		t.Error(err)
	}
	if _, err := s.ReportInstallation(t.Context(), "web-1", api.InstallReport{ID: imprint.DigestOf([]byte("web-1")), Generation: 1, Step: imprint.InstallFinished}); err != nil {
		t.Fatal(err)
	}
	refused("after it")
	if _, err := s.Rebirth(t.Context(), "web-1"); err != nil {
		t.Fatal(err)
	}
	refused("in the next life")
}

// A restart keeps what may be kept, and names what may not.
func TestGanetiDefect4RestartKeepsValues(t *testing.T) {
	t.Parallel()
	site := newSite(t)
	s := site.serve(t)
	spec, values := eachSort(serialOnly("web-1"))
	s.create(t, spec, values)
	s.stop()
	s = site.serve(t)
	d, err := s.Describe(t.Context(), "web-1")
	if err != nil || !slices.Equal(d.Missing, []string{"join-key"}) || d.Instance.Spec.Params[0].Value != "7" {
		t.Fatalf("after a restart: %+v, lacks %v, %v", d.Instance.Spec.Params, d.Missing, err)
	}
	if err := s.PutParam(t.Context(), "web-1", "join-key", values["join-key"]); err != nil {
		t.Fatal(err)
	}
	s.installing(t, "web-1")
	got, err := s.InstallValues(t.Context(), "web-1")
	if err != nil || !got["db-password"].Equal(values["db-password"]) {
		t.Errorf("after a restart: %v", err)
	}
}

// Whatever leaves the server about an instance, but for the one answer to who
// installs it, has neither private nor secret values; nor have files and log.
func TestGanetiDefect15ExportsAreWithoutValues(t *testing.T) {
	t.Parallel()
	site := newSite(t)
	s := site.serve(t)
	canary := canaries{}
	spec, values := eachSort(serialOnly("web-1"))
	for name := range values {
		values[name] = imprint.NewSecret([]byte(canary.fresh(name)))
	}
	s.create(t, spec, values)
	s.installing(t, "web-1")
	if _, err := s.InstallValues(t.Context(), "web-1"); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"get", "web-1", "-o", "yaml"}, {"get", "web-1", "-o", "json"}, {"get", "-o", "yaml"}, {"describe", "web-1"}, {"describe", "web-1", "-o", "json"},
		{"setup", "show", "web-1", "-o", "json"}, {"rebirth", "web-1", "-o", "json"}, {"get", "web-1", "-o", "yaml"},
	} {
		out, err := site.cli(args...)
		if err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
		canary.search(t, strings.Join(args, " "), []byte(out))
	}
	s.stop()
	if canary.searchFiles(t, site.config.Data, "") == 0 {
		t.Fatal("there are no files to search")
	}
	canary.search(t, "the log", []byte(site.log.String()))
}
