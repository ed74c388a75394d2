package dialect_test

import (
	"encoding/base64"
	"encoding/json"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"imprint"
	"imprint/internal/dialect"
	"imprint/test/need"
)

// The hashes of a password that everybody may know, and of one for root alone, whose
// value is in no spec but would be rendered if it were asked for.
const (
	openHash    = "$6$saltsalt$qFmFH.bQmmtXzyBY0s9v7Oicd2z4XSIecDzlB5KiA2/jctKu9YterLp8wwnSq.qc.eoxqOmSuNp2xS0ktL3nh/"
	privateHash = "$6$must-not-be-here"
	daveKey     = "ssh-ed25519 AAAA dave"
)

// people is an instance with users of all sorts.
func people() *imprint.Instance {
	inst := instance()
	inst.Spec.Users = []imprint.User{
		{
			Name: "alice", Gecos: `Alice "A\l" Ü, 100%m`, UID: 1042, Groups: []string{"adm", "RemoteDesktopUsers"}, Shell: "/bin/bash", Admin: true,
			SSHKeys: []string{"ssh-ed25519 AAAA alice", "ssh-rsa BBBB alice"}, HashedPassword: "open-hash",
		},
		{Name: "bob", HashedPassword: "private-hash"},
		{Name: "dave", SSHKeys: []string{daveKey}},
	}
	inst.Spec.Params = append(inst.Spec.Params,
		imprint.Param{Name: "open-hash", Visibility: imprint.Public, Value: openHash},
		imprint.Param{Name: "private-hash", Visibility: imprint.Private, Value: privateHash},
		imprint.Param{Name: "alice-win", Visibility: imprint.Public, Value: `a<"&%é`},
		imprint.Param{Name: "bob-win", Visibility: imprint.Private})
	inst.Spec.Network = ipv4Network()
	return inst
}

const cloudConfig = `#cloud-config
{"users":["default",` +
	`{"name":"alice","gecos":"Alice \"A\\l\" Ü, 100%m","uid":1042,"groups":["adm","RemoteDesktopUsers"],"shell":"/bin/bash","sudo":"ALL=(ALL) NOPASSWD:ALL",` +
	`"ssh_authorized_keys":["ssh-ed25519 AAAA alice","ssh-rsa BBBB alice"],"hashed_passwd":"` + openHash + `","lock_passwd":false},` +
	`{"name":"bob","lock_passwd":true},` +
	`{"name":"dave","ssh_authorized_keys":["` + daveKey + `"],"lock_passwd":true}]}
`

// merged is a program that says who would be made, by the parts of cloud-init that read
// vendor data and user data and put them together. Of cloud-init's own settings it has
// the image's user.
const merged = `
import json, sys
from cloudinit import helpers, sources, user_data, util
from cloudinit.distros import ug_util
from cloudinit.handlers.cloud_config import CloudConfigPartHandler
class Paths(helpers.Paths):
    def get_ipath(self, name): return sys.argv[1] + "/" + name
paths = Paths({"cloud_dir": sys.argv[1], "run_dir": sys.argv[1]})
def config(data, name):
    if not data: return {}
    message = user_data.UserDataProcessor(paths).process(data)
    handler = CloudConfigPartHandler(paths)
    handler.cloud_fn = sys.argv[1] + "/" + name
    handler.handle_part(None, "__begin__", None, None, None, None)
    for piece in message.walk():
        if piece.get_content_type() == "text/cloud-config":
            handler.handle_part(None, "text/cloud-config", name, util.fully_decoded_payload(piece), "once", dict(piece.items()))
    handler.handle_part(None, "__end__", None, None, None, None)
    return util.load_yaml(util.load_file(handler.cloud_fn), default={})
class Distro:
    def get_default_user(self): return {"name": "debian"}
said = {}
for name, given in json.load(sys.stdin).items():
    vendor = given["Vendor"]
    if given["OpenStack"]:
        vendor = sources.convert_vendordata(json.loads(vendor))
    cfg = util.mergemanydict([config(given["User"], "user"), config(vendor, "vendor"), {"users": ["default"]}])
    users, _ = ug_util.normalize_users_groups(cfg, Distro())
    said[name] = {"users": users, "others": sorted(set(cfg) - {"users", "merge_how", "merge_type"})}
print(json.dumps(said))
`

// given is what cloud-init reads: its vendor data as it is, or in a document of Nova's.
type given struct {
	Vendor, User string
	OpenStack    bool
}

// made is who would be made, and what else is set.
type made struct {
	Users  map[string]map[string]any
	Others []string
}

// cloudInit returns what the program merged says of each.
func cloudInit(t *testing.T, all map[string]given) map[string]made {
	t.Helper()
	need.File(t, "/usr/lib/python3/dist-packages/cloudinit/distros/ug_util.py", "cloud-init")
	in, err := json.Marshal(all)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/usr/bin/python3", "-c", merged, t.TempDir())
	cmd.Stdin = strings.NewReader(string(in))
	var log strings.Builder
	cmd.Stderr = &log
	out, err := cmd.Output()
	var said map[string]made
	if err != nil || json.Unmarshal(out, &said) != nil || len(said) != len(all) {
		t.Fatalf("cloud-init: %v: %s\n%s", err, out, log.String())
	}
	return said
}

// cloud-init's own parts make of the vendor data the users that were declared beside the
// image's own, whatever vendor data the operator gave; and none of them if the tenant's
// user data has a list of its own.
func TestUsersForCloudInit(t *testing.T) {
	t.Parallel()
	everyone := []string{"alice", "bob", "dave", "debian"}
	cases := map[string]struct {
		vendor, user  string
		names, others []string
	}{
		"nothing else":  {"", "", everyone, nil},
		"others":        {"#cloud-config\nlocale: C\n", "#cloud-config\ntimezone: UTC\n", everyone, []string{"locale", "timezone"}},
		"vendor's own":  {"#cloud-config\nusers: [{name: vera}]\n", "", []string{"vera"}, nil},
		"tenant's own":  {"", "#cloud-config\nusers: [{name: tom}]\n", []string{"tom"}, nil},
		"a MIME vendor": {"Content-Type: multipart/mixed; boundary=b\nMIME-Version: 1.0\n\n--b\nContent-Type: text/cloud-config\n\nlocale: C\n--b--\n", "", everyone, []string{"locale"}},
		"for others":    {`{"theirs":[1]}`, "", everyone, nil},
	}
	all := map[string]given{}
	for name, c := range cases {
		inst := people()
		inst.Spec.VendorData = c.vendor
		all[name+"/nocloud"] = given{string(dialect.NoCloud(inst).Values["nocloud/vendor-data"].Data), c.user, false}
		all[name+"/openstack"] = given{string(dialect.OpenStack(inst, facts, nil).Values["openstack/latest/vendor_data.json"].Data), c.user, true}
		all[name+"/triton"] = given{string(dialect.Triton(inst, facts).Values["sdc:vendor-data"].Data), c.user, false}
	}
	for key, got := range cloudInit(t, all) {
		name, in, _ := strings.Cut(key, "/")
		want := cases[name]
		others := slices.DeleteFunc(got.Others, func(s string) bool { return s == "fs_setup" && in == "triton" })
		if names := slices.Sorted(maps.Keys(got.Users)); !slices.Equal(names, want.names) || !slices.Equal(others, want.others) {
			t.Errorf("%s: users %q and %q", key, names, others)
		}
		if alice := got.Users["alice"]; alice != nil && (alice["hashed_passwd"] != openHash || alice["lock_passwd"] != false || alice["sudo"] != "ALL=(ALL) NOPASSWD:ALL" || alice["gecos"] != `Alice "A\l" Ü, 100%m`) {
			t.Errorf("%s: alice is %v", key, alice)
		}
		if bob := got.Users["bob"]; bob != nil && (bob["hashed_passwd"] != nil || bob["lock_passwd"] != true) {
			t.Errorf("%s: bob is %v", key, bob)
		}
	}
	inst := people()
	if got := string(dialect.NoCloud(inst).Values["nocloud/vendor-data"].Data); got != cloudConfig {
		t.Errorf("vendor data %s\nwant %s", got, cloudConfig)
	}
	// What is for others stays there.
	inst.Spec.VendorData = `{"cloud-init":"#cloud-config\n{}\n","theirs":[1]}`
	for file, want := range map[string]string{"vendor_data.json": `"theirs":[1]}`, "vendor_data2.json": `{"static":` + inst.Spec.VendorData + `}`} {
		if got := string(dialect.OpenStack(inst, facts, nil).Values["openstack/latest/"+file].Data); !strings.HasSuffix(got, want) {
			t.Errorf("%s is %s", file, got)
		}
	}
}

// With --merge-vendor-data they are in the user data, once, before the tenant's own.
func TestUsersInUserData(t *testing.T) {
	t.Parallel()
	all := map[string]given{}
	for name, paths := range map[string][2]string{
		"nocloud": {"user-data", "vendor-data"}, "openstack": {"openstack/latest/user_data", "openstack/latest/vendor_data.json"},
		"ec2": {"ec2/latest/user-data", ""}, "altcloud": {"user-data.txt", ""},
	} {
		inst := people()
		view, _, err := drive(t, name).Render(inst, facts, dialect.DriveInput{Readers: mediumReaders, MergeVendor: true})
		if err != nil {
			t.Fatal(err)
		}
		all[name] = given{User: string(view.Values[paths[0]].Data)}
		if vendor := string(view.Values[paths[1]].Data); strings.Contains(vendor, "alice") {
			t.Errorf("%s: they are in the vendor data as well: %s", name, vendor)
		}
	}
	for name, got := range cloudInit(t, all) {
		if names := slices.Sorted(maps.Keys(got.Users)); !slices.Equal(names, []string{"alice", "bob", "dave", "debian"}) || !slices.Equal(got.Others, []string{"packages"}) {
			t.Errorf("%s: users %q and %q", name, names, got.Others)
		}
	}
}

// credentials renders them for systemd.
func credentials(t *testing.T, inst *imprint.Instance, form dialect.Form) map[string]string {
	t.Helper()
	view, _, err := drive(t, "credentials").Render(inst, facts, dialect.DriveInput{Readers: mediumReaders, Form: form, Payload: []byte("{}")})
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for path, v := range view.Values {
		files[path[strings.LastIndexByte(path, '/')+1:]] = string(v.Data)
	}
	return files
}

// systemd's own programs make of the credentials what was declared: in a root directory
// that has nothing, and once more without a change.
func TestUsersForSystemd(t *testing.T) {
	t.Parallel()
	need.Root(t)
	sysusers, tmpfiles := need.Program(t, "systemd-sysusers", "systemd"), need.Program(t, "systemd-tmpfiles", "systemd")
	for _, form := range []dialect.Form{dialect.Firmware, dialect.Initrd} {
		files, dir, root := credentials(t, people(), form), t.TempDir(), t.TempDir()
		for name, data := range files {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(data), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		apply := func() {
			t.Helper()
			for _, args := range [][]string{{sysusers, "--root=" + root}, {tmpfiles, "--create", "--prefix=/home", "--prefix=/etc", "--root=" + root}} {
				cmd := exec.Command(args[0], args[1:]...)
				if form == dialect.Initrd { // as files; the programs look at credentials otherwise
					cmd.Args = append(cmd.Args, filepath.Join(dir, strings.TrimPrefix(filepath.Base(args[0]), "systemd-")+".extra"))
				} else {
					cmd.Env = append(os.Environ(), "CREDENTIALS_DIRECTORY="+dir)
				}
				if out, err := cmd.CombinedOutput(); err != nil || strings.Contains(string(out), "gnoring") {
					t.Errorf("%s: %v\n%s", args[0], err, out)
				}
			}
		}
		if err := os.MkdirAll(filepath.Join(root, "etc"), 0o755); err != nil {
			t.Fatal(err)
		}
		apply()
		read := func(path string) string {
			b, err := fs.ReadFile(os.DirFS(root), path)
			if err != nil {
				t.Error(err)
			}
			return string(b)
		}
		for path, lines := range map[string][]string{
			"etc/passwd":                      {`alice:x:1042:1042:Alice "A\l" Ü, 100%m:/home/alice:/bin/bash`, "::/home/bob:/bin/sh", "::/home/dave:/bin/sh"},
			"etc/group":                       {"adm:x:", ":alice\n", "RemoteDesktopUsers:x:", "alice:x:1042:\n"},
			"etc/sudoers.d/90-imprint-alice":  {"alice ALL=(ALL) NOPASSWD:ALL\n"},
			"home/alice/.ssh/authorized_keys": {"ssh-ed25519 AAAA alice\nssh-rsa BBBB alice\n"},
			"home/dave/.ssh/authorized_keys":  {daveKey + "\n"},
		} {
			for _, line := range lines {
				if text := read(path); !strings.Contains(text, line) {
					t.Errorf("%s: no %q in %s of\n%s", form, line, path, text)
				}
			}
		}
		shadow := read("etc/shadow")
		if form == dialect.Firmware && !strings.Contains(shadow, "alice:"+openHash+":") || !strings.Contains(shadow, "bob:!*:") || strings.Contains(shadow, "must-not") {
			t.Errorf("%s: the passwords are\n%s", form, shadow)
		}
		for path, mode := range map[string]fs.FileMode{
			"home/alice": fs.ModeDir | 0o700, "home/bob": fs.ModeDir | 0o700, "home/alice/.ssh": fs.ModeDir | 0o700,
			"home/alice/.ssh/authorized_keys": 0o600, "etc/sudoers.d/90-imprint-alice": 0o440,
		} {
			info, err := os.Stat(filepath.Join(root, path))
			if err != nil || info.Mode() != mode {
				t.Errorf("%s: %s is %v, %v", form, path, info, err)
				continue
			}
			owner := uint32(0)
			if strings.HasPrefix(path, "home/alice") {
				owner = 1042
			}
			if got := info.Sys().(*syscall.Stat_t).Uid; got != owner && path != "home/bob" {
				t.Errorf("%s: %s belongs to %d", form, path, got)
			}
		}
		for _, path := range []string{"home/bob/.ssh", "etc/sudoers.d/90-imprint-dave"} {
			if _, err := os.Stat(filepath.Join(root, path)); err == nil {
				t.Errorf("%s: there is a %s", form, path)
			}
		}
		// What its user changed stays.
		if err := os.WriteFile(filepath.Join(root, "home/dave/.ssh/authorized_keys"), []byte("changed\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(filepath.Join(root, "home/alice"), 0o755); err != nil {
			t.Fatal(err)
		}
		apply()
		if info, err := os.Stat(filepath.Join(root, "home/alice")); err != nil || info.Mode() != fs.ModeDir|0o755 || read("home/dave/.ssh/authorized_keys") != "changed\n" {
			t.Errorf("%s: the second boot changed what was the user's: %v, %v", form, info, err)
		}
	}
}

// sudo takes the file.
func TestSudoersFile(t *testing.T) {
	t.Parallel()
	visudo := need.Program(t, "visudo", "sudo")
	path := filepath.Join(t.TempDir(), "sudoers")
	_, encoded, _ := strings.Cut(credentials(t, people(), dialect.Firmware)["tmpfiles.extra"], "90-imprint-alice 0440 root root - ")
	encoded, _, _ = strings.Cut(encoded, "\n")
	line, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, line, 0o440); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(visudo, "--check", "--strict", "--file", path).CombinedOutput(); err != nil || len(line) == 0 {
		t.Errorf("%q: %v: %s", line, err, out)
	}
}

// A hash goes where all readers may read it and nowhere else: a public one into what
// stock software reads, a private one into nothing.
func TestHashesKeepToTheirAudience(t *testing.T) {
	t.Parallel()
	inst := people()
	views := map[string]*imprint.View{
		"openstack": dialect.OpenStack(inst, facts, nil), "ec2": dialect.EC2(inst, facts), "nocloud": dialect.NoCloud(inst),
		"triton": dialect.Triton(inst, facts), "ganeti": dialect.Ganeti(inst, facts),
	}
	for _, d := range dialect.Drives() {
		for _, form := range d.Forms {
			for _, merge := range []bool{false, d.UserData} {
				view, omitted, err := d.Render(inst, facts, dialect.DriveInput{Readers: mediumReaders | d.Readers, Form: form, Payload: []byte("{}"), MergeVendor: merge})
				if err != nil {
					t.Fatal(err)
				}
				if !slices.Contains(omitted, "private-hash") {
					t.Errorf("%s: nobody is told of the private hash: %q", d.Name, omitted)
				}
				views[d.Name+" on "+string(form)] = view
			}
		}
	}
	for name, view := range views {
		for path, v := range view.Values {
			if strings.Contains(string(v.Data), "must-not-be-here") {
				t.Errorf("%s: the private hash is in %s", name, path)
			}
		}
	}
	for form, want := range map[dialect.Form]string{dialect.Firmware: openHash, dialect.Initrd: openHash, dialect.Stub: "", dialect.FWCfg: ""} {
		files := credentials(t, inst, form)
		if got := files["passwd.hashed-password.alice"]; got != want {
			t.Errorf("%s: alice's hash is %q", form, got)
		}
		if _, imports := files["systemd.unit-dropin.systemd-sysusers.service"]; imports != (want != "") {
			t.Errorf("%s: systemd-sysusers is told of a hash: %t", form, imports)
		}
	}
	// Whoever may read everything of it gets it: it is the audience that decides.
	view, _, err := drive(t, "credentials").Render(inst, facts, dialect.DriveInput{Readers: imprint.GuestRoot, Form: dialect.Firmware})
	if got := string(view.Values["io.systemd.credentials/passwd.hashed-password.bob"].Data); err != nil || got != privateHash {
		t.Errorf("for the guest's root alone: %q, %v", got, err)
	}
	for path, v := range view.Values {
		if strings.Contains(string(v.Data), "must-not-be-here") && v.Visibility != imprint.Private {
			t.Errorf("%s is %s", path, v.Visibility)
		}
	}
	// cloud-init would show it to everybody, wherever it had it from.
	view, _, err = drive(t, "nocloud").Render(inst, facts, dialect.DriveInput{Readers: imprint.GuestRoot, MergeVendor: true})
	if err != nil {
		t.Fatal(err)
	}
	users := cloudInit(t, map[string]given{"": {User: string(view.Values["user-data"].Data)}})[""].Users
	if hash := users["bob"]["hashed_passwd"]; hash != nil || users["alice"]["hashed_passwd"] != openHash {
		t.Errorf("cloud-init has bob's hash %v, and alice's %v", hash, users["alice"]["hashed_passwd"])
	}
}

// The operator is told what a dialect cannot say.
func TestUnsupportedUsers(t *testing.T) {
	t.Parallel()
	all := []string{"user alice", "user bob", "user dave"}
	for _, c := range []struct {
		dialect string
		in      dialect.DriveInput
		want    []string
	}{
		{"openstack", dialect.DriveInput{}, nil},
		{"nocloud", dialect.DriveInput{}, nil},
		{"nocloud-net", dialect.DriveInput{}, nil},
		{"ec2", dialect.DriveInput{}, all},
		{"ec2", dialect.DriveInput{MergeVendor: true}, nil},
		{"ec2", dialect.DriveInput{MergeVendor: true, Closed: true}, all},
		{"altcloud", dialect.DriveInput{}, all},
		{"altcloud", dialect.DriveInput{MergeVendor: true}, nil},
		{"ganeti", dialect.DriveInput{}, all},
		{"native", dialect.DriveInput{}, all},
		{"sysprep", dialect.DriveInput{}, all},
		{"credentials", dialect.DriveInput{Form: dialect.Firmware}, nil},
		{"credentials", dialect.DriveInput{Form: dialect.FWCfg}, []string{"the password of alice"}},
		{"credentials", dialect.DriveInput{Form: dialect.Stub}, []string{"the password of alice"}},
		{"unattend", dialect.DriveInput{}, all},
		{"unattend", dialect.DriveInput{UserPasswords: map[string]string{"alice": "alice-win"}}, []string{
			"the SSH keys of alice", "the UID of alice", "the hashed password of alice", "the shell of alice", "user bob", "user dave",
		}},
	} {
		c.in.Readers = mediumReaders
		if got := drive(t, c.dialect).Unsupported(people(), c.in); !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", c.dialect, got, c.want)
		}
		if got := drive(t, c.dialect).Unsupported(instance(), c.in); got != nil {
			t.Errorf("%s of no users: %q", c.dialect, got)
		}
	}
}

// Windows gets accounts for those users who have a password there.
func TestUsersForWindows(t *testing.T) {
	t.Parallel()
	const account = "Microsoft-Windows-Shell-Setup UserAccounts/LocalAccounts/LocalAccount/"
	in := dialect.DriveInput{Readers: mediumReaders, AdminPassword: "motd", UserPasswords: map[string]string{"alice": "alice-win", "dave": "motd"}}
	view, _, err := drive(t, "unattend").Render(people(), facts, in)
	if err != nil {
		t.Fatal(err)
	}
	found := settingsOf(t, string(view.Values["Unattend.xml"].Data))
	for setting, want := range map[string][]string{
		"Name": {"alice", "dave"}, "DisplayName": {`Alice "A\l" Ü, 100%m`}, "Group": {"Administrators;adm;RemoteDesktopUsers", "Users"},
		"Password/Value": {`a<"&%é`, "hello"}, "Password/PlainText": {"true", "true"},
	} {
		if got := found[account+setting]; !slices.Equal(got, want) {
			t.Errorf("%s is %q, want %q", setting, got, want)
		}
	}
	if got := found["Microsoft-Windows-Shell-Setup UserAccounts/AdministratorPassword/Value"]; !slices.Equal(got, []string{"hello"}) {
		t.Errorf("the administrator's password is %q", got)
	}

	for _, c := range []struct {
		dialect   string
		user      string
		passwords map[string]string
		kind      imprint.Kind
		says      string
	}{
		{"unattend", "bob", map[string]string{"bob": "bob-win"}, imprint.Denied, "it is private, and not all who can read the medium may read it"},
		{"unattend", "bob", map[string]string{"bob": ""}, imprint.Invalid, "no parameter is named for its password"},
		{"unattend", "bob", map[string]string{"bob": "absent"}, imprint.NotFound, "has none of that name"},
		{"unattend", "bob", map[string]string{"bob": "empty"}, imprint.Invalid, "1 to 127 characters"},
		{"unattend", "bob", map[string]string{"bob": "motd", "nobody": "motd"}, imprint.NotFound, "of the 2 users who are to have a password it has 1"},
		{"unattend", "guest", map[string]string{"guest": "motd"}, imprint.Invalid, "Windows has an account or a computer of that name"},
		{"unattend", "web-1", map[string]string{"web-1": "motd"}, imprint.Invalid, "Windows has an account or a computer of that name"},
		{"unattend", "a23456789012345678901", map[string]string{"a23456789012345678901": "motd"}, imprint.Invalid, "the name has 21 characters, and one of Windows' at most 20"},
		{"sysprep", "bob", map[string]string{"bob": "motd"}, imprint.Invalid, "it has no place for the passwords of Windows' users"},
		{"nocloud", "bob", map[string]string{"bob": "motd"}, imprint.Invalid, "it has no place for the passwords of Windows' users"},
	} {
		inst := people()
		inst.Spec.Users[1].Name = c.user
		view, _, err := drive(t, c.dialect).Render(inst, facts, dialect.DriveInput{Readers: mediumReaders, UserPasswords: c.passwords})
		if imprint.KindOf(err) != c.kind || err == nil || !strings.Contains(err.Error(), c.says) || view != nil {
			t.Errorf("%s with %v: %v", c.dialect, c.passwords, err)
		}
	}
}
