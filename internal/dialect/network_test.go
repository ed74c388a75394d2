package dialect_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"imprint"
	"imprint/internal/dialect"
)

var update = flag.Bool("update", false, "write the golden files; read the difference before you commit it")

// golden compares a View with testdata/NAME.golden: every name with the ones
// that share its bytes, and the bytes.
func golden(t *testing.T, name string, view *imprint.View) {
	t.Helper()
	var out bytes.Buffer
	names := slices.Sorted(maps.Keys(view.Values))
	shown := map[string]bool{}
	for _, n := range names {
		if shown[n] {
			continue
		}
		v := view.Values[n]
		for _, same := range names {
			w := view.Values[same]
			if base(same) == base(n) && bytes.Equal(w.Data, v.Data) {
				shown[same] = true
				fmt.Fprintf(&out, "-- %s %s", same, w.Visibility)
				if w.BootOnly {
					out.WriteString(" boot-only")
				}
				out.WriteString(" --\n")
			}
		}
		fmt.Fprintf(&out, "%s\n", v.Data)
	}
	path := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.WriteFile(path, out.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(out.Bytes(), want) {
		t.Errorf("%s differs from %s; it is now:\n%s", name, path, out.Bytes())
	}
}

func base(name string) string { return name[strings.LastIndexByte(name, '/')+1:] }

func TestNetworkDialectsRenderTheSameBytesAsEver(t *testing.T) {
	t.Parallel()
	inst := instance()
	facts := dialect.Facts{Datacenter: "east", Packages: map[string][]byte{"debian": []byte("archive")}}
	inst.Spec.Params = append(inst.Spec.Params,
		imprint.Param{Name: "os-install-package", Visibility: imprint.Public, Value: "debian"},
		imprint.Param{Name: "os-package", Visibility: imprint.Public, Value: "/etc/passwd"})
	golden(t, "openstack", dialect.OpenStack(inst, facts, []byte("seed")))
	golden(t, "ec2", dialect.EC2(inst, facts))
	golden(t, "nocloud", dialect.NoCloud(inst))
	golden(t, "ganeti", dialect.Ganeti(inst, facts))
}

// What Nova serves under which version (nova/api/metadata/base.py).
func TestOpenStackServesEachFileFromItsVersionOn(t *testing.T) {
	t.Parallel()
	view := dialect.OpenStack(instance(), facts, []byte("seed"))
	since := map[string]string{
		"meta_data.json": "2012-08-10", "user_data": "2012-08-10", "network_data.json": "2012-08-10",
		"vendor_data.json": "2013-10-17", "vendor_data2.json": "2016-10-06",
	}
	keys := map[string]string{"uuid": "2012-08-10", "random_seed": "2013-04-04", "project_id": "2015-10-15", "devices": "2016-06-30", "dedicated_cpus": "2020-10-14"}
	for _, version := range dialect.OpenStackVersions() {
		for file, first := range since {
			if _, ok := view.Lookup("openstack/" + version + "/" + file); ok != (version >= first) {
				t.Errorf("%s under %s: %v", file, version, ok)
			}
		}
		meta, _ := view.Lookup("openstack/" + version + "/meta_data.json")
		var got map[string]json.RawMessage
		if err := json.Unmarshal(meta.Data, &got); err != nil {
			t.Fatal(err)
		}
		for key, first := range keys {
			if _, ok := got[key]; ok != (version >= first) {
				t.Errorf("%s under %s: %v", key, version, ok)
			}
		}
	}
}

func TestBareInstanceLeavesOutWhatItHasNot(t *testing.T) {
	t.Parallel()
	inst := &imprint.Instance{ID: "6b1c2f0e-4a57-4d6e-9d0a-0f2f6f3b8a11", Spec: imprint.Spec{Name: "n", Tenant: "t"}}
	for name, want := range map[string]string{
		"openstack/2012-08-10/meta_data.json": `{"uuid":"6b1c2f0e-4a57-4d6e-9d0a-0f2f6f3b8a11","hostname":"n","name":"n","launch_index":0,"availability_zone":""}`,
		"openstack/latest/network_data.json":  `{}`,
		"openstack/latest/vendor_data.json":   `{}`,
		"openstack/latest/vendor_data2.json":  `{"static":{}}`,
	} {
		if v, _ := dialect.OpenStack(inst, dialect.Facts{}, nil).Lookup(name); string(v.Data) != want {
			t.Errorf("%s: %s", name, v.Data)
		}
	}
	if _, ok := dialect.OpenStack(inst, dialect.Facts{}, nil).Lookup("openstack/latest/user_data"); ok {
		t.Error("user data that nobody gave")
	}
	if got := strs(dialect.NoCloud(inst)); got["nocloud/user-data"] != "" || len(got) != 2 {
		t.Errorf("nocloud %q", got) // a medium needs both files, and user-data may be empty
	}
}

// Whatever the operator writes, no clear-text password reaches every process of
// the guest by way of what cloudbase-init reads.
func TestOpenStackNeverHasAdminPass(t *testing.T) {
	t.Parallel()
	inst := instance()
	inst.Spec.Metadata["admin_pass"] = "canary"
	inst.Spec.Params = append(inst.Spec.Params, imprint.Param{Name: "token2", Visibility: imprint.Private, Value: "canary"})
	for _, view := range []*imprint.View{dialect.OpenStack(inst, facts, nil), dialect.EC2(inst, facts), dialect.Ganeti(inst, facts)} {
		for name, v := range view.Values {
			if bytes.Contains(v.Data, []byte("canary")) || bytes.Contains(v.Data, []byte("must not be here")) {
				t.Errorf("%s: %s", name, v.Data)
			}
		}
	}
}

func TestVendorDataKeepsItsJSONAndWrapsTheRest(t *testing.T) {
	t.Parallel()
	inst := instance()
	for given, want := range map[string]string{
		"#cloud-config\n{}\n": `{"cloud-init":"#cloud-config\n{}\n"}`,
		`{"cloud-init": "x"}`: `{"cloud-init": "x"}`,
		`["a"]`:               `["a"]`,
	} {
		inst.Spec.VendorData = given
		v, _ := dialect.OpenStack(inst, facts, nil).Lookup("openstack/latest/vendor_data.json")
		if string(v.Data) != want {
			t.Errorf("%q became %s", given, v.Data)
		}
	}
}

func TestGanetiParametersAreOrderedByVisibility(t *testing.T) {
	t.Parallel()
	got := dialect.EncodeGanetiParameters([]dialect.GanetiParameter{
		{"c", "3", imprint.SecretOnly}, {"b", "<2>", imprint.Private}, {"a", "1", imprint.Public}, {`q"`, `"`, imprint.Private},
	})
	if want := `{"a":["1","public"],"b":["<2>","private"],"q\"":["\"","private"],"c":["3","secret"]}`; string(got) != want {
		t.Errorf("got %s", got)
	}
	if empty := dialect.EncodeGanetiParameters(nil); string(empty) != "{}" {
		t.Errorf("got %s", empty)
	}
}

func BenchmarkOpenStack(b *testing.B) {
	inst := instance()
	b.ReportAllocs()
	for b.Loop() {
		dialect.OpenStack(inst, facts, nil)
	}
}
