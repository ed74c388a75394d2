package osdef

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"imprint"
	"imprint/internal/confine"
)

func TestMain(m *testing.M) {
	confine.Main()
	goleak.VerifyTestMain(m)
}

// define writes a definition and returns it. A file whose text begins with #! is
// executable; "" takes a file away that every definition has.
func define(t *testing.T, name string, files map[string]string) (path []string, d *Definition) {
	t.Helper()
	// Not below /tmp, which a cage has of its own.
	dir, err := os.MkdirTemp("/var/tmp", "imprint-osdef-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	at := filepath.Join(dir, name)
	if err := os.Mkdir(at, 0o755); err != nil {
		t.Fatal(err)
	}
	all := map[string]string{"ganeti_api_version": "20\n15\n", "parameters.list": ""}
	for _, op := range []Op{Create, Import, Export, Rename, Verify} {
		all[string(op)] = "#!/bin/sh\nexit 0\n"
	}
	for file, text := range files {
		all[file] = text
	}
	for file, text := range all {
		mode := os.FileMode(0o644)
		if strings.HasPrefix(text, "#!") {
			mode = 0o755
		}
		if text != "" || file == "parameters.list" && files[file] != "absent" {
			write(t, filepath.Join(at, file), text, mode)
		}
	}
	if files["parameters.list"] == "absent" {
		os.Remove(filepath.Join(at, "parameters.list"))
	}
	if d, err = Find([]string{"/nowhere", dir}, name); err != nil {
		t.Fatal(err)
	}
	return []string{dir}, d
}

func write(t *testing.T, path, text string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

const demoList = "size How large it is\nroot-password Of root\nmirror\n# a comment\n\ndb.host Where\n"

const demoYAML = `
params:
  size: {type: integer, required: true}
  root-password: {visibility: secret, pattern: "[!-~]{8,}"}
  mirror: {enum: [one, two], default: one, description: From where}
  db.host: {visibility: private}
`

func TestDefinition(t *testing.T) {
	t.Parallel()
	path, d := define(t, "demo", map[string]string{"parameters.list": demoList, "imprint.yaml": demoYAML, "variants.list": "# all\nsmall\nlarge\n", "create_untrusted": "#!/bin/sh\n"})
	if d.Problems != nil || !slices.Equal(d.Variants, []string{"small", "large"}) || len(d.Schema.Params) != 4 || d.Digest == "" {
		t.Fatalf("%+v", d)
	}
	if host, vm := d.Halves(Create); !host || !vm {
		t.Error("it has two halves")
	}
	if host, vm := d.Halves(Verify); !host || vm {
		t.Error("verify has one")
	}
	for variant, want := range map[string]string{"small": "", "": "a variant has to be named", "other": "it has no variant other"} {
		if err := d.Usable(variant); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("variant %q: %v", variant, err)
		}
	}
	if all, err := List(append(path, path...)); err != nil || len(all) != 1 || all[0].Name != "demo" {
		t.Errorf("listed: %v, %v", all, err)
	}
	for _, name := range []string{"absent", "../demo", ""} {
		if _, err := Find(path, name); err == nil {
			t.Errorf("found %q", name)
		}
	}
}

// What is wrong with a definition is said, in words that Ganeti's users know.
func TestProblems(t *testing.T) {
	t.Parallel()
	for want, files := range map[string]map[string]string{
		"it has neither create nor create_untrusted":                          {"create": ""},
		"its script verify is missing":                                        {"verify": ""},
		"its script create is not an executable file":                         {"create": "echo"},
		"it has no ganeti_api_version":                                        {"ganeti_api_version": ""},
		"it has the API versions [10 15], and not 20":                         {"ganeti_api_version": "10\n15\n"},
		`its ganeti_api_version has the line "x", which is not a number`:      {"ganeti_api_version": "20\nx\n"},
		"it has no parameters.list":                                           {"parameters.list": "absent"},
		"its parameters a-b and a_b would both be the variable OSP_A_B":       {"parameters.list": "a-b x\na_b y\n"},
		`its parameters.list has the line "é x"`:                              {"parameters.list": "é x\n"},
		`its variants.list has the line "../x"`:                               {"variants.list": "../x\n"},
		"its file parameters.list has more than 65536 bytes":                  {"parameters.list": strings.Repeat("x", maxListFile+1)},
		"field parms not found":                                               {"imprint.yaml": "parms: {}\n"},
		`its imprint.yaml has the parameter "b", which its parameters.list`:   {"parameters.list": "a x\n", "imprint.yaml": "params: {b: {}}\n"},
		`its parameter a has the type "number"; there are text`:               {"parameters.list": "a x\n", "imprint.yaml": "params: {a: {type: number}}\n"},
		`its parameter a has the visibility "mine"`:                           {"parameters.list": "a x\n", "imprint.yaml": "params: {a: {visibility: mine}}\n"},
		"its parameter a is secret and has a default, which everybody":        {"parameters.list": "a x\n", "imprint.yaml": "params: {a: {visibility: secret, default: x}}\n"},
		"its parameter a has a default that it does not allow: it is neither": {"parameters.list": "a x\n", "imprint.yaml": "params: {a: {type: boolean, default: x}}\n"},
		`its parameter a has the pattern "(", which cannot be used`:           {"parameters.list": "a x\n", "imprint.yaml": `params: {a: {pattern: "("}}` + "\n"},
		`secrets: "shown", which is neither files nor environment`:            {"imprint.yaml": "secrets: shown\n"},
		`the file "etc/passwd", which is not an absolute path`:                {"imprint.yaml": "files: [etc/passwd]\n"},
	} {
		_, d := define(t, "demo", files)
		if got := strings.Join(d.Problems, "; "); !strings.Contains(got, want) || d.Usable("") == nil {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func secret(s string) imprint.Secret { return imprint.NewSecret([]byte(s)) }

// The schema is checked wherever a parameter gets a value, all of it at once, and
// no value is shown.
func TestSchema(t *testing.T) {
	t.Parallel()
	_, d := define(t, "demo", map[string]string{"parameters.list": demoList, "imprint.yaml": demoYAML})
	good := []imprint.Param{
		{Name: "size", Visibility: imprint.Private}, {Name: "root-password", Visibility: imprint.SecretOnly},
		{Name: "motd", Visibility: imprint.Public, Value: "the machine's own"},
	}
	values := map[string]imprint.Secret{"size": secret("7"), "root-password": secret("correct-horse")}
	if err := d.Schema.Check(good, values, ""); err != nil {
		t.Error(err)
	}
	if err := d.Schema.Check(good, nil, ""); err != nil {
		t.Errorf("values that are not at hand: %v", err)
	}
	bad := []imprint.Param{
		{Name: "root-password", Visibility: imprint.Private}, {Name: "mirror", Visibility: imprint.Public, Value: "three"}, {Name: "db.host", Visibility: imprint.Public, Value: "x"},
	}
	err := d.Schema.Check(bad, nil, "")
	for _, want := range []string{
		"parameter size is required: How large it is", "parameter root-password is private here, and the definition has it secret",
		"parameter mirror is none of one, two", "parameter db.host is public here, and the definition has it private",
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in %v", want, err)
		}
	}
	for name, values := range map[string]map[string]imprint.Secret{
		"parameter size is not a whole number":                   {"size": secret("hunter2")},
		"parameter root-password does not match [!-~]{8,}":       {"root-password": secret("hunter2")},
		"parameter size is empty, and required: How large it is": {"size": secret("")},
	} {
		err := d.Schema.Check(good, values, "")
		if imprint.KindOf(err) != imprint.Invalid || !strings.Contains(err.Error(), name) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("want %q, got %v", name, err)
		}
	}
	if err := d.Schema.Check(bad, nil, "motd"); err != nil {
		t.Errorf("one that the schema does not have: %v", err)
	}
	if err := d.Schema.Check(bad, nil, "mirror"); err == nil || strings.Contains(err.Error(), "size") {
		t.Errorf("mirror alone: %v", err)
	}
}

// The operator's mark is for the definition as it is: any change of any file, of a
// mode, or of what a link leads to, takes it away.
func TestTrust(t *testing.T) {
	t.Parallel()
	path, d := define(t, "demo", map[string]string{"common.sh": "x=1\n"})
	trust := Trust{filepath.Join(t.TempDir(), "trusted-os")}
	denied := func(what string) {
		t.Helper()
		d, err := Find(path, "demo")
		if err != nil {
			t.Fatal(err)
		}
		if err := trust.Trusts(d); imprint.KindOf(err) != imprint.Denied || !strings.Contains(imprint.HintOf(err), "imprint os trust demo") {
			t.Errorf("%s: %v", what, err)
		}
	}
	denied("before it was marked")
	mark := func() {
		t.Helper()
		d, err := Find(path, "demo")
		if err == nil {
			err = trust.Mark(d)
		}
		if err == nil {
			err = trust.Trusts(d)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	mark()
	write(t, filepath.Join(d.Dir, "common.sh"), "x=2\n", 0o644)
	denied("a file that the script reads changed")
	mark()
	write(t, filepath.Join(d.Dir, "more"), "", 0o644)
	denied("a file was added")
	mark()
	if err := os.Chmod(filepath.Join(d.Dir, "more"), 0o755); err != nil {
		t.Fatal(err)
	}
	denied("a mode changed")
	target := filepath.Join(t.TempDir(), "variants")
	write(t, target, "# none\n", 0o644)
	if err := os.Symlink(target, filepath.Join(d.Dir, "variants.list")); err != nil {
		t.Fatal(err)
	}
	mark()
	write(t, target, "# others\n", 0o644)
	denied("what a link leads to changed")
	mark()
	if err := trust.Unmark("demo"); err != nil {
		t.Fatal(err)
	}
	denied("after the mark was taken away")
	// What others may change nobody can vouch for.
	if err := os.Chmod(d.Dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := trust.Mark(d); imprint.KindOf(err) != imprint.Denied {
		t.Errorf("a directory that everybody can write to: %v", err)
	}
	write(t, trust.Path, string(d.Digest)+"  demo\n", 0o666)
	if err := trust.Trusts(d); imprint.KindOf(err) != imprint.Denied || !strings.Contains(err.Error(), "others than root can change it") {
		t.Errorf("a file of marks that everybody can write to: %v", err)
	}
}

func instance() *imprint.Instance {
	return &imprint.Instance{
		ID: "7c9f1c52-3b57-4a31-9d2e-0c6a5d0f7e11", Generation: 1,
		Spec: imprint.Spec{
			Name: "web-1", Tenant: imprint.DefaultTenant, DNSNames: []string{"web-1.lab.internal"},
			Params: []imprint.Param{
				{Name: "size", Visibility: imprint.Public, Value: "7"}, {Name: "root-password", Visibility: imprint.SecretOnly},
				{Name: "db.host", Visibility: imprint.Private}, {Name: "motd", Visibility: imprint.Public, Value: "the machine's own"},
				{Name: "ssh-key", Visibility: imprint.SecretOnly},
			},
		},
	}
}

// canaries are the values of the instance's parameters that are not public.
func canaries() map[string]imprint.Secret {
	return map[string]imprint.Secret{
		"root-password": secret("correct-horse-battery"), "db.host": secret("db-7.private.internal"), "ssh-key": secret("the-machines-own-secret"),
	}
}

func FuzzDefinition(f *testing.F) {
	f.Add([]byte(demoList), []byte(demoYAML), []byte("0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef  demo\n"))
	f.Add([]byte("a\nA\n"), []byte("params: {a: {enum: [], pattern: \"(a|b)*\"}}"), []byte("x"))
	f.Fuzz(func(t *testing.T, list, text, marks []byte) {
		if len(list)+len(text)+len(marks) > maxListFile {
			return
		}
		params, err := parseList(list)
		if err != nil {
			return
		}
		s := Schema{Params: params}
		if s.refine(text) == nil {
			for i := range s.Params {
				p := &s.Params[i]
				v, ok := variableOf(p.Name)
				if !ok || strings.ContainsAny(v, "=\x00 ") || p.Default != "" && p.fault(p.Default) != "" {
					t.Errorf("%+v", p)
				}
			}
		}
		m, err := parseTrust("marks", marks)
		for name, d := range m {
			if err == nil && (!imprint.ValidDigest(d) || (imprint.OS{Name: name}).Check() != nil) {
				t.Errorf("%q %q", name, d)
			}
		}
		var shown bytes.Buffer
		fmt.Fprint(&shown, newScrubber(map[string]imprint.Secret{"x": imprint.NewSecret(text)}).line(list))
	})
}
