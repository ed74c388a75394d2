package media_test

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"imprint"
	"imprint/internal/dialect"
	"imprint/internal/media"
	"imprint/test/need"
)

// testDirectory fails unless a carrier that is a directory holds as much as it says,
// and is none to be written as one file.
func testDirectory(t *testing.T, c media.Carrier) {
	t.Helper()
	one, more := "org.imprint/payload", "org.imprint/b"
	if c.Form == dialect.Stub {
		one, more = "payload", "b"
	}
	v := &media.Volume{Time: at, Files: map[string][]byte{one: make([]byte, c.Capacity)}}
	if _, err := c.Files(v, "/dir"); err != nil {
		t.Errorf("%s does not hold %d bytes: %v", c.Name, c.Capacity, err)
	}
	v.Files[more] = []byte("x")
	if _, err := c.Files(v, "/dir"); imprint.KindOf(err) != imprint.Exhausted {
		t.Errorf("%s and one byte more than it holds: %v", c.Name, err)
	}
	var out bytes.Buffer
	if err := c.Write(&out, v, 0); imprint.KindOf(err) != imprint.Invalid || out.Len() > 0 {
		t.Errorf("%s as one file: %v", c.Name, err)
	}
}

func TestFWCfg(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), `a <&> 'b'`)
	v := &media.Volume{Files: map[string][]byte{
		"io.systemd.credentials/network.network.70-imprint31": []byte("[Network]\n"), // 55 bytes below opt/
		"org.imprint/payload": []byte("{}"),
	}}
	files, err := media.FWCfg(v, dir)
	if err != nil {
		t.Fatal(err)
	}
	conf := string(files["qemu.conf"])
	var domain struct {
		Info struct {
			Type    string `xml:"type,attr"`
			Entries []struct {
				Name string `xml:"name,attr"`
				File string `xml:"file,attr"`
			} `xml:"entry"`
		} `xml:"sysinfo"`
	}
	err = xml.Unmarshal(files["libvirt.xml"], &domain)
	info := domain.Info
	if err != nil || info.Type != "fwcfg" || len(info.Entries) != len(v.Files) {
		t.Errorf("libvirt's element is %+v, %v", info, err)
	}
	for i, e := range info.Entries {
		path := strings.TrimPrefix(e.Name, "opt/")
		if e.File != filepath.Join(dir, path) || !bytes.Equal(files[path], v.Files[path]) || v.Files[path] == nil {
			t.Errorf("libvirt gets %+v", e)
		}
		if want := fmt.Sprintf("[fw_cfg \"imprint%d\"]\n  name = %q\n  file = \"%s\"\n", i, e.Name, e.File); !strings.Contains(conf, want) {
			t.Errorf("no %q in %s", want, conf)
		}
	}
	if strings.Contains(conf, "{}") || len(files) != 4 {
		t.Errorf("%d files, and %s", len(files), conf)
	}

	many := map[string][]byte{}
	for i := range 13 {
		many[fmt.Sprint("org.imprint/", i)] = nil
	}
	for name, c := range map[string]struct {
		files map[string][]byte
		dir   string
		kind  imprint.Kind
		says  string
	}{
		"nobody's":     {map[string][]byte{"a/b": nil}, "/d", imprint.Invalid, "neither imprint's nor a credential"},
		"climbing":     {map[string][]byte{"org.imprint/..": nil}, "/d", imprint.Invalid, "neither imprint's nor a credential"},
		"quote":        {map[string][]byte{`org.imprint/a"b`: nil}, "/d", imprint.Invalid, `the character '"'`},
		"long name":    {map[string][]byte{"io.systemd.credentials/network.network.70-imprint310": nil}, "/d", imprint.Invalid, "holds 28 characters"},
		"many":         {many, "/d", imprint.Exhausted, "13 files; there may be 1 to 12"},
		"none":         {nil, "/d", imprint.Exhausted, "0 files"},
		"relative":     {v.Files, "d", imprint.Invalid, "an absolute path"},
		"quoted":       {v.Files, `/d"`, imprint.Invalid, "a quote or a line break"},
		"line break":   {v.Files, "/d\n", imprint.Invalid, "a quote or a line break"},
		"deep in tree": {v.Files, "/" + strings.Repeat("d", 900), imprint.Invalid, "its name has 901 bytes"},
	} {
		files, err := media.FWCfg(&media.Volume{Files: c.files}, c.dir)
		if imprint.KindOf(err) != c.kind || err == nil || !strings.Contains(err.Error(), c.says) || files != nil {
			t.Errorf("%s: %v, and %q", name, err, slices.Collect(maps.Keys(files)))
		}
	}
}

const systemID = "6b1c2f0e-4a57-4d6e-9d0a-0f2f6f3b8a11"

func TestSystem(t *testing.T) {
	t.Parallel()
	v := &media.Volume{Files: map[string][]byte{"system-uuid": []byte(systemID), "system-serial-number": []byte("ds=nocloud-net;s=http://a/")}}
	var b bytes.Buffer
	if err := media.System(&b, v); err != nil {
		t.Fatal(err)
	}
	c, err := media.Inspect(bytes.NewReader(b.Bytes()), int64(b.Len()))
	if err != nil || c.Format != "smbios" || c.Names != "system information" {
		t.Fatalf("%+v, %v", c, err)
	}
	same(t, "Inspect", c.Files, v.Files)
	for name, c := range map[string]struct {
		uuid, serial, more string
		kind               imprint.Kind
		says               string
	}{
		"no UUID":        {"6b1c", "s", "", imprint.Invalid, "it is no UUID"},
		"no serial":      {systemID, "", "", imprint.Invalid, "only characters of ASCII"},
		"NUL":            {systemID, "a\x00b", "", imprint.Invalid, "only characters of ASCII"},
		"not of ASCII":   {systemID, "ü", "", imprint.Invalid, "only characters of ASCII"},
		"too long":       {systemID, strings.Repeat("s", 220), "", imprint.Exhausted, "1 too many"},
		"something else": {systemID, "s", "system-family", imprint.Invalid, "there are system-uuid and"},
	} {
		v := &media.Volume{Files: map[string][]byte{"system-uuid": []byte(c.uuid), "system-serial-number": []byte(c.serial)}}
		if c.more != "" {
			v.Files[c.more] = nil
		}
		for _, write := range []func(io.Writer, *media.Volume) error{media.System, media.LibvirtSystem} {
			var out bytes.Buffer
			if err := write(&out, v); imprint.KindOf(err) != c.kind || err == nil || !strings.Contains(err.Error(), c.says) || out.Len() > 0 {
				t.Errorf("%s: %v, and %d bytes", name, err, out.Len())
			}
		}
	}
}

// libvirt itself makes of the elements what QEMU is to be told, whatever is in a
// value: files by their names, and no more of them.
func TestLibvirtUnderstands(t *testing.T) {
	t.Parallel()
	virsh := need.Program(t, "virsh", "libvirt-clients")
	need.Program(t, "libvirtd", "libvirt-daemon-system libvirt-daemon-driver-qemu")
	need.Program(t, "qemu-system-x86_64", "qemu-system-x86")
	need.Root(t)
	dir := filepath.Join(t.TempDir(), "a b")
	files, err := media.FWCfg(&media.Volume{Files: map[string][]byte{"org.imprint/payload": []byte("canary")}}, dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(dir, "org.imprint"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "org.imprint/payload"), files["org.imprint/payload"], 0o600); err != nil {
		t.Fatal(err)
	}
	var oem, system bytes.Buffer
	if err := media.LibvirtOEM(&oem, &media.Volume{Files: map[string][]byte{"org.imprint/payload": []byte("x,y"), "io.systemd.credentials/a": nil}}); err != nil {
		t.Fatal(err)
	}
	if err := media.LibvirtSystem(&system, &media.Volume{Files: map[string][]byte{"system-uuid": []byte(systemID), "system-serial-number": []byte("<&>,s=")}}); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ part, want string }{
		"fw_cfg":      {string(files["libvirt.xml"]), "-fw_cfg 'name=opt/org.imprint/payload,file=" + dir + "/org.imprint/payload'"},
		"OEM strings": {oem.String(), "-smbios type=11,value=io.systemd.credential.binary:a=,value=org.imprint:payload=eCx5"},
		"system":      {system.String(), "-smbios 'type=1,serial=<&>,,s='"},
	} {
		// What is whole is put together of the part and the rest of a domain.
		whole := strings.Replace(c.part, "<domain>", "<domain type='qemu'><name>web-1</name><memory>65536</memory>", 1)
		if !strings.Contains(whole, "<os>") {
			whole = strings.Replace(whole, "</domain>", "<os></os></domain>", 1)
		}
		whole = strings.Replace(whole, "<os>", "<os><type arch='x86_64' machine='q35'>hvm</type>", 1)
		path := filepath.Join(t.TempDir(), "domain.xml")
		if err := os.WriteFile(path, []byte(whole), 0o600); err != nil {
			t.Fatal(err)
		}
		out := run(t, virsh, "-c", "qemu:///embed?root="+t.TempDir(), "domxml-to-native", "qemu-argv", "--xml", path)
		if !strings.Contains(out, c.want) || strings.Contains(out, "canary") {
			t.Errorf("%s: no %q in %s", name, c.want, out)
		}
		run(t, virsh, "-c", "qemu:///embed?root="+t.TempDir(), "define", "--validate", path) // the schema, as virsh edit does
	}
}

// systemd's own program finds in each file what was put there, under its name alone.
func TestStub(t *testing.T) {
	t.Parallel()
	program := need.Program(t, "systemd-creds", "systemd")
	v := &media.Volume{Time: at, Files: map[string][]byte{
		"system.hostname": []byte("web-1"), "tmpfiles.extra": bytes.Repeat([]byte("d /x\n\x00"), 700), "empty": nil,
		"systemd.unit-dropin.multi-user.target": []byte("[Unit]\n"), "eight8ch": []byte("x"),
	}}
	files, err := media.Stub(v, "/dir")
	if err != nil {
		t.Fatal(err)
	}
	again, err := media.Stub(v, "/other")
	if err != nil || !maps.EqualFunc(files, again, bytes.Equal) || len(files) != len(v.Files) {
		t.Errorf("%d files, and other %d: %v", len(files), len(again), err)
	}
	dir := t.TempDir()
	for name, want := range v.Files {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, files["loader/credentials/"+name+".cred"], 0o600); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(program, "decrypt", "--name="+name, path, "-")
		var log bytes.Buffer
		cmd.Stderr = &log
		if out, err := cmd.Output(); err != nil || !bytes.Equal(out, want) {
			t.Errorf("%s: %q, %v: %s", name, out, err, log.String())
		}
		if err := exec.Command(program, "decrypt", "--name=other", path, "-").Run(); err == nil {
			t.Errorf("%s goes under another name", name)
		}
	}
	for name, c := range map[string]struct {
		v    media.Volume
		kind imprint.Kind
	}{
		"none":      {media.Volume{Time: at}, imprint.Exhausted},
		"year 1":    {media.Volume{Files: v.Files}, imprint.Invalid},
		"directory": {media.Volume{Time: at, Files: map[string][]byte{"a/b": nil}}, imprint.Invalid},
		"climbing":  {media.Volume{Time: at, Files: map[string][]byte{"..": nil}}, imprint.Invalid},
		"hidden":    {media.Volume{Time: at, Files: map[string][]byte{".a": nil}}, imprint.Invalid},
		"not FAT's": {media.Volume{Time: at, Files: map[string][]byte{"a:b": nil}}, imprint.Invalid},
	} {
		if files, err := media.Stub(&c.v, "/dir"); imprint.KindOf(err) != c.kind || err == nil || files != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
