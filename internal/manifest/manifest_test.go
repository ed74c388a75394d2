package manifest_test

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"imprint"
	"imprint/internal/dialect"
	"imprint/internal/manifest"
)

var update = flag.Bool("update", false, "write the want files anew")

// sources gives values that are the same everywhere.
func sources() manifest.Sources {
	return manifest.Sources{
		Env: func(name string) (string, bool) { return "from the environment", name == "CANARY" },
		// The second newline is part of the value.
		Stdin:  strings.NewReader("from standard input\n\n"),
		Prompt: func(string) (imprint.Secret, error) { return imprint.NewSecret([]byte("from the terminal")), nil },
	}
}

func compare(t *testing.T, got, wantFile string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(wantFile, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(wantFile)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s:\ngot:\n%s\nwant:\n%s", wantFile, got, want)
	}
}

func files(t *testing.T, pattern string) []string {
	t.Helper()
	all, err := filepath.Glob(pattern)
	if err != nil || len(all) == 0 {
		t.Fatalf("no files %s: %v", pattern, err)
	}
	return all
}

// What is right becomes exactly the spec and the values in the want file.
func TestGood(t *testing.T) {
	t.Parallel()
	for _, file := range files(t, "testdata/good/*.yaml") {
		t.Run(filepath.Base(file), func(t *testing.T) {
			t.Parallel()
			all, err := manifest.Load(file, sources())
			if err != nil {
				t.Fatal(err)
			}
			type shown struct {
				ID     imprint.InstanceID `json:",omitempty"`
				Spec   imprint.Spec
				Values map[string]string `json:",omitempty"`
			}
			var out []shown
			for _, m := range all {
				s := shown{ID: m.ID, Spec: m.Spec, Values: map[string]string{}}
				for name, v := range m.Values {
					s.Values[name] = string(v.Reveal())
				}
				out = append(out, s)
			}
			b, err := json.MarshalIndent(out, "", "  ")
			if err != nil {
				t.Fatal(err)
			}
			compare(t, string(b)+"\n", strings.TrimSuffix(file, "yaml")+"want")
		})
	}
}

// What is wrong is named with its line, all of it at once, and no value that
// could be a password appears.
func TestBad(t *testing.T) {
	t.Parallel()
	for _, file := range files(t, "testdata/bad/*.yaml") {
		t.Run(filepath.Base(file), func(t *testing.T) {
			t.Parallel()
			_, err := manifest.Load(file, sources())
			if imprint.KindOf(err) != imprint.Invalid {
				t.Fatalf("got %v, want an invalid manifest", err)
			}
			var problems manifest.Problems
			if !errors.As(err, &problems) || len(problems) == 0 {
				t.Fatalf("%v has no problems in its chain", err)
			}
			if strings.Contains(err.Error(), "hunter2") {
				t.Errorf("the error shows a password: %v", err)
			}
			compare(t, err.Error()+"\nhint: "+imprint.HintOf(err)+"\n", strings.TrimSuffix(file, "yaml")+"want")
		})
	}
}

// What Marshal writes creates the same instances again, with the private values
// asked for.
func TestMarshalRoundTrip(t *testing.T) {
	t.Parallel()
	for _, file := range append(files(t, "testdata/good/*.yaml"), "../../examples/web-1.yaml") {
		src := sources()
		src.Env = func(string) (string, bool) { return "x", true }
		all, err := manifest.Load(file, src)
		if err != nil {
			t.Fatal(err)
		}
		var specs []imprint.Spec
		for _, m := range all {
			specs = append(specs, m.Spec)
		}
		out, err := manifest.Marshal(specs...)
		if err != nil {
			t.Fatal(err)
		}
		asked := map[string]bool{}
		src = sources()
		src.Prompt = func(name string) (imprint.Secret, error) {
			asked[name] = true
			return prompted(all, name), nil
		}
		again, err := manifest.Parse("again", out, src)
		if err != nil {
			t.Fatalf("%s: %v\n%s", file, err, out)
		}
		for i := range all {
			sortParams(&all[i].Spec)
			sortParams(&again[i].Spec)
			if !reflect.DeepEqual(all[i].Spec, again[i].Spec) {
				t.Errorf("%s: wrote\n%s\ngot  %+v\nwant %+v", file, out, again[i].Spec, all[i].Spec)
			}
			for _, p := range again[i].Spec.Params {
				if p.Visibility != imprint.Public && !asked[p.Name] {
					t.Errorf("%s: %s was not asked for", file, p.Name)
				}
			}
		}
	}
}

// prompted is what somebody types for a parameter who knows its value.
func prompted(all []manifest.Manifest, name string) imprint.Secret {
	for _, m := range all {
		if v, ok := m.Values[name]; ok {
			return v
		}
	}
	return imprint.Secret{}
}

func TestLoadErrors(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	long := filepath.Join(dir, "long.yaml")
	if err := os.WriteFile(long, []byte(strings.Repeat("#", manifest.MaxFile+1)), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		path string
		kind imprint.Kind
		text string
	}{
		{filepath.Join(dir, "absent.yaml"), imprint.NotFound, "no such file"},
		{long, imprint.Invalid, "more than 1048576 bytes"},
		{dir, imprint.Invalid, "is a directory"},
		{"-", imprint.Invalid, "declares no instance"},
	} {
		_, err := manifest.Load(test.path, manifest.Sources{Stdin: strings.NewReader("")})
		if imprint.KindOf(err) != test.kind || !strings.Contains(err.Error(), test.text) {
			t.Errorf("%s: got %v (%v), want %v with %q", test.path, err, imprint.KindOf(err), test.kind, test.text)
		}
	}
}

// A manifest on standard input leaves nothing there for a value.
func TestManifestOnStandardInput(t *testing.T) {
	t.Parallel()
	in := "name: web-1\nparams: {private: {a: {stdin: true}}}\n"
	_, err := manifest.Load("-", manifest.Sources{Stdin: strings.NewReader(in)})
	if err == nil || !strings.Contains(err.Error(), "line 2, column 23: params.private.a refers to standard input, which is not available") {
		t.Errorf("got %v", err)
	}
}

// With no sources at all, references are refused and never fetched elsewhere.
func TestSourcesRefuse(t *testing.T) {
	t.Parallel()
	in := "name: web-1\nparams: {private: {a: {env: HOME}, b: {prompt: true}, c: {stdin: true}, d: {file: /etc/passwd}}}\n"
	_, err := manifest.Parse("m", []byte(in), manifest.Sources{
		Open: func(string) (f readCloser, err error) { return nil, fs.ErrPermission },
	})
	var problems manifest.Problems
	if !errors.As(err, &problems) || len(problems) != 4 {
		t.Errorf("got %v, want four refusals", err)
	}
}

// The server judges a spec that was never YAML by the same rules.
func TestCheck(t *testing.T) {
	t.Parallel()
	if err := manifest.Check(&imprint.Spec{Name: "web-1"}); err != nil {
		t.Errorf("the least spec: %v", err)
	}
	spec := &imprint.Spec{Name: "web-1", Params: []imprint.Param{
		{Name: "a", Visibility: imprint.Private, Value: "hunter2"},
		{Name: "b", Visibility: "mine"},
		{Name: "b", Visibility: imprint.Public},
	}, Metadata: map[string]string{"long": strings.Repeat("x", imprint.MaxMetadataLen+1)},
		UserData: strings.Repeat("x", 12<<10+1),
		Channels: []imprint.ChannelKind{imprint.VirtioSerial}}
	spec.Params = append(spec.Params, imprint.Param{Name: "big", Visibility: imprint.Public, Value: strings.Repeat("x", 13<<10)})
	err := manifest.Check(spec)
	if imprint.KindOf(err) != imprint.Invalid {
		t.Fatalf("got %v", err)
	}
	for _, want := range []string{
		"params.private.a has its value in the spec", `params.mine.b has the visibility "mine"`, "params.public.b is there twice",
		"metadata.long has 4097 bytes; 4096 are allowed", "params.public.big has 13312 bytes, and at most 12288 fit through virtio-serial; add the channel est",
		"userData has 12289 bytes, and at most 12288 fit through virtio-serial",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in: %v", want, err)
		}
	}
	if strings.Contains(err.Error(), "hunter2") {
		t.Errorf("the error shows a password: %v", err)
	}
}

// As many users as are accepted, with all that they may have, fit a serial port in the
// form in which they go there, alone and with vendor data. More are refused.
func TestUsersFit(t *testing.T) {
	t.Parallel()
	serial, _ := imprint.ChannelOf(imprint.Serial2)
	for _, vendor := range []int{0, 3000, 6000} {
		spec := imprint.Spec{Name: "web-1", VendorData: strings.Repeat("x", vendor), Channels: []imprint.ChannelKind{imprint.Serial2}}
		fit, refusal := 0, error(nil)
		for i := 0; refusal == nil; i++ {
			hash := fmt.Sprintf("h%d", i)
			spec.Params = append(spec.Params, imprint.Param{Name: hash, Visibility: imprint.Public, Value: "$6$" + strings.Repeat("x", 300)})
			spec.Users = append(spec.Users, imprint.User{
				Name: fmt.Sprintf("u%d", i), UID: 1000 + i, Gecos: strings.Repeat("<", 10), Groups: []string{"adm"}, Shell: "/bin/sh",
				Admin: true, SSHKeys: []string{testKey}, HashedPassword: hash,
			})
			if refusal = manifest.Check(&spec); refusal != nil {
				break
			}
			fit++
			if n := len(dialect.Triton(&imprint.Instance{Spec: spec}, dialect.Facts{}).Values["sdc:vendor-data"].Data); n > serial.Capacity {
				t.Fatalf("%d users beside %d bytes of vendor data take %d bytes of %d", fit, vendor, n, serial.Capacity)
			}
		}
		want := "users together with the vendor data: has 1"
		if vendor == 0 {
			want = "bytes together, with their hashes; 8192 are allowed"
		}
		if fit == 0 || !strings.Contains(refusal.Error(), want) {
			t.Errorf("%d users beside %d bytes of vendor data, and then: %v", fit, vendor, refusal)
		}
	}
	spec := imprint.Spec{Name: "web-1"}
	for i := range imprint.MaxUsers + 1 {
		spec.Users = append(spec.Users, imprint.User{Name: fmt.Sprintf("u%d", i)})
	}
	if err := manifest.Check(&spec); err == nil || !strings.Contains(err.Error(), "users has 33 elements; 32 are allowed") {
		t.Errorf("too many: %v", err)
	}
}

const testKey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIIClClga4j7TmeFRB7jhdbnbZbJawYCd+Iv3clQzbvOs"

// The reference names every field that Marshal can write.
func TestReference(t *testing.T) {
	t.Parallel()
	ref := manifest.Reference()
	for _, field := range []string{
		"name", "userDataFile", "network.ethernets.NAME.routes[].via", "network.ethernets.NAME.nameservers.search",
		"params.private.NAME.env", "users[].hashedPassword", "params.secret", "enrolment.window", "personalization[].credentials", "image.keyFile", "os",
	} {
		if !strings.Contains(ref, "| `"+field+"` |") {
			t.Errorf("%s is not in the reference", field)
		}
	}
	if strings.Contains(ref, "bonds") {
		t.Error("the reference names a field that is not supported")
	}
}
