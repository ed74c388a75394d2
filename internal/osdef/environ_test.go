package osdef

import (
	"flag"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"imprint"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// The environment of create is Ganeti's, variable by variable: what was observed of
// ganeti 3.0.2, but for what imprint has no notion of.
func TestEnvironment(t *testing.T) {
	t.Parallel()
	_, d := define(t, "demo", map[string]string{"parameters.list": demoList, "imprint.yaml": demoYAML, "variants.list": "small\n"})
	i := instance()
	i.Created, i.Updated = time.Unix(1000, 0), time.Unix(2000, 0)
	i.NIC = &imprint.NIC{Host: "hv-1", MAC: "02:00:00:00:00:01", IPv4: netip.MustParseAddr("169.254.0.7")}
	i.Spec.Network = &imprint.Network{Ethernets: map[string]imprint.Ethernet{
		"eth0": {MAC: "52:54:00:00:00:01", Addresses: []netip.Prefix{netip.MustParsePrefix("192.0.2.7/24"), netip.MustParsePrefix("2001:db8::7/64")},
			Routes: []imprint.Route{{To: "default", Via: netip.MustParseAddr("192.0.2.1")}}},
		"eth1": {DHCP4: true},
	}}
	in := &Input{Instance: i, Values: canaries(), MemoryMiB: 1024, CPUs: 2, Reinstall: true, OldName: "old.lab.internal",
		Disks: []Disk{{Path: "/dev/vda", Size: 2 << 30}, {Path: "/srv/data.raw", Size: 1 << 20, File: true, ReadOnly: true}}}
	var all strings.Builder
	for _, op := range []Op{Create, Verify, Rename, Export} {
		env, secret, files, err := d.environment(op, "small", in)
		if err != nil {
			t.Fatal(err)
		}
		slices.Sort(env)
		all.WriteString("# " + string(op) + "\n" + strings.Join(env, "\n") + "\n")
		for _, kind := range []struct {
			what string
			of   map[string]imprint.Secret
		}{{"secret", secret}, {"file", files}} {
			for name := range kind.of {
				all.WriteString(kind.what + " " + name + "\n")
			}
		}
	}
	const golden = "testdata/environment"
	if *update {
		if err := os.WriteFile(golden, []byte(all.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if all.String() != string(want) {
		t.Errorf("got\n%s\nwant\n%s", all.String(), want)
	}
	for name, v := range in.Values {
		if strings.Contains(all.String(), string(v.Reveal())) {
			t.Errorf("the value of %s is among those that anybody may see", name)
		}
	}
}

// A parameter that is the machine's own does not reach scripts; one that is missing is
// named.
func TestEnvironmentOfParameters(t *testing.T) {
	t.Parallel()
	_, d := define(t, "demo", map[string]string{"parameters.list": demoList, "imprint.yaml": demoYAML})
	in := &Input{Instance: instance(), Values: canaries()}
	env, secret, files, err := d.environment(Create, "", in)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(strings.Join(env, "\n"), "machine's own") || len(secret) != 1 || len(files) != 1 || files["OSP_ROOT_PASSWORD_FILE"].IsZero() || secret["OSP_DB_HOST"].IsZero() {
		t.Errorf("scripts are given %v, secret %v, files %v", env, secret, files)
	}
	if !slices.Contains(env, "OSP_MIRROR=one") || !slices.Contains(env, "OSP_SIZE=7") {
		t.Errorf("no default, or no public value: %v", env)
	}
	delete(in.Values, "root-password")
	_, _, _, err = d.environment(Create, "", in)
	if imprint.KindOf(err) != imprint.Conflict || !strings.Contains(err.Error(), "its secret parameter root-password is not at hand") || imprint.HintOf(err) != "give it: imprint set web-1 root-password" {
		t.Errorf("a secret that is missing: %v (%s)", err, imprint.HintOf(err))
	}
	if _, _, _, err := d.environment(Rename, "", in); err != nil {
		t.Errorf("rename, which is told no secret: %v", err)
	}
	d.Schema.SecretsInEnvironment = true
	in.Values = canaries()
	if _, secret, files, err := d.environment(Create, "", in); err != nil || len(files) != 0 || secret["OSP_ROOT_PASSWORD"].IsZero() {
		t.Errorf("a definition that wants secrets in its environment: %v, %v, %v", secret, files, err)
	}
}

// The path of a secret's file is the only value of its variable, whatever other
// parameters are called: whoever sets those would choose what is read.
func TestPathOfASecretIsNobodysParameter(t *testing.T) {
	t.Parallel()
	_, d := define(t, "demo", map[string]string{"parameters.list": "key a key\nkey_file where it is\n"})
	i := instance()
	i.Spec.Params = []imprint.Param{{Name: "key", Visibility: imprint.SecretOnly}, {Name: "key_file", Visibility: imprint.Public, Value: "/etc/shadow"}}
	in := &Input{Instance: i, Values: map[string]imprint.Secret{"key": imprint.NewSecret([]byte("hunter2"))}}
	if env, _, files, err := d.environment(Create, "", in); imprint.KindOf(err) != imprint.Invalid {
		t.Errorf("%v; the environment has %q, and files are %v", err, env, files)
	}
}
