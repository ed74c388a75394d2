package media_test

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"imprint"
	"imprint/internal/media"
)

// testDirectory fails unless a carrier that is a directory holds as much as it says,
// and is none to be written as one file.
func testDirectory(t *testing.T, c media.Carrier) {
	t.Helper()
	v := &media.Volume{Files: map[string][]byte{"org.imprint/payload": make([]byte, c.Capacity)}}
	if _, err := c.Files(v, "/dir"); err != nil {
		t.Errorf("%s does not hold %d bytes: %v", c.Name, c.Capacity, err)
	}
	v.Files["org.imprint/b"] = []byte("x")
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
	var info struct {
		Type    string `xml:"type,attr"`
		Entries []struct {
			Name string `xml:"name,attr"`
			File string `xml:"file,attr"`
		} `xml:"entry"`
	}
	if err := xml.Unmarshal(files["libvirt.xml"], &info); err != nil || info.Type != "fwcfg" || len(info.Entries) != len(v.Files) {
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
