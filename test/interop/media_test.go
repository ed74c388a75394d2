//go:build interop

package interop

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"imprint"
	"imprint/internal/dialect"
	"imprint/test/need"
)

// drivesPy has cloud-init read what imprint puts on media.
//
//go:embed testdata/drives.py
var drivesPy string

// taken is as what cloud-init takes user data.
type taken struct {
	Parts  [][2]string    // type and content
	Config map[string]any // all cloud-configs together
}

// cloud-init finds vendor data that was merged into user data, whatever both are, and
// of a setting that both have it takes the user's. It reads AltCloud's file.
func TestCloudInitReadsMergedUserData(t *testing.T) {
	t.Parallel()
	const python = "/usr/bin/python3" // the one that Debian's cloud-init is installed for
	need.Program(t, python, "python3")
	need.Program(t, "cloud-init", "cloud-init")
	const (
		config     = "#cloud-config\nlocale: user\npackages: [nginx]\n"
		vendor     = "#cloud-config\nlocale: vendor\ntimezone: UTC\n"
		script     = "#!/bin/sh\necho 'Grüße, \"you\"'\n# " + "a long line of base64 that has to be divided, and once more: a long line of base64\n"
		mime       = "Content-Type: multipart/mixed; boundary=\"b\"\nMIME-Version: 1.0\n\n--b\nContent-Type: text/x-shellscript\nMIME-Version: 1.0\n\n#!/bin/sh\n\n--b\nContent-Type: text/cloud-config\nMIME-Version: 1.0\n\n#cloud-config\nlocale: user\n\n--b--\n"
		mimeScript = "#!/bin/sh\n"
	)
	asJSON, err := json.Marshal(map[string]any{"cloud-init": []string{vendor, script}, "other": 1})
	if err != nil {
		t.Fatal(err)
	}
	cases := map[string]struct {
		vendor, user string
		parts        [][2]string
		locale       string
	}{
		"configs":         {vendor, config, [][2]string{{"text/cloud-config", vendor}, {"text/cloud-config", config}}, "user"},
		"no user data":    {vendor, "", [][2]string{{"text/cloud-config", vendor}}, "vendor"},
		"scripts":         {script, script, [][2]string{{"text/x-shellscript", script}, {"text/x-shellscript", script}}, ""},
		"vendor's JSON":   {string(asJSON), config, [][2]string{{"text/cloud-config", vendor}, {"text/x-shellscript", script}, {"text/cloud-config", config}}, "user"},
		"JSON string":     {`"#!/bin/sh\n"`, config, [][2]string{{"text/x-shellscript", "#!/bin/sh\n"}, {"text/cloud-config", config}}, "user"},
		"user's MIME":     {vendor, mime, [][2]string{{"text/cloud-config", vendor}, {"text/x-shellscript", mimeScript}, {"text/cloud-config", "#cloud-config\nlocale: user\n"}}, "user"},
		"vendor's MIME":   {mime, config, [][2]string{{"text/x-shellscript", mimeScript}, {"text/cloud-config", "#cloud-config\nlocale: user\n"}, {"text/cloud-config", config}}, "user"},
		"nobody's JSON":   {`{"other": 1}`, config, [][2]string{{"text/cloud-config", config}}, "user"},
		"no vendor data":  {"", config, [][2]string{{"text/cloud-config", config}}, "user"},
		"the boundary in": {vendor, "#!/bin/sh\n--imprint-\n\n--b--\n", [][2]string{{"text/cloud-config", vendor}, {"text/x-shellscript", "#!/bin/sh\n--imprint-\n\n--b--\n"}}, "vendor"},
	}
	render := func(name, vendor, user string) map[string]imprint.Value {
		t.Helper()
		d, err := dialect.DriveOf(name)
		if err != nil {
			t.Fatal(err)
		}
		inst, _ := novaPair(user, vendor)
		view, _, err := d.Render(inst, dialect.Facts{}, dialect.DriveInput{Readers: imprint.GuestRoot, MergeVendor: true})
		if err != nil {
			t.Fatal(err)
		}
		return view.Values
	}
	var asked struct {
		Merged   map[string]string `json:"merged"`
		AltCloud string            `json:"altcloud"`
	}
	asked.Merged = map[string]string{}
	for name, c := range cases {
		values := render("nocloud", c.vendor, c.user)
		asked.Merged[name] = string(values["user-data"].Data)
		if left, want := string(values["vendor-data"].Data), map[bool]string{true: c.vendor}[name == "nobody's JSON"]; left != want {
			t.Errorf("%s: vendor data is %q", name, left)
		}
	}
	asked.AltCloud = t.TempDir()
	for path, v := range render("altcloud", "", config) {
		if err := os.WriteFile(filepath.Join(asked.AltCloud, path), v.Data, 0o600); err != nil {
			t.Fatal(err)
		}
	}

	in, err := json.Marshal(asked)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), python, "-c", drivesPy)
	var log strings.Builder
	cmd.Stdin, cmd.Stderr = strings.NewReader(string(in)), &log
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("drives.py: %v\n%s", err, log.String())
	}
	var seen struct {
		Merged   map[string]taken
		AltCloud string
	}
	if err := json.Unmarshal(out, &seen); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	for _, name := range slices.Sorted(maps.Keys(cases)) {
		c, got := cases[name], seen.Merged[name]
		if !slices.Equal(got.Parts, c.parts) {
			t.Errorf("%s: cloud-init takes it as %q, want %q", name, got.Parts, c.parts)
		}
		if locale := fmt.Sprint(got.Config["locale"]); c.locale != "" && locale != c.locale {
			t.Errorf("%s: the setting is the one of the %s", name, locale)
		}
	}
	if seen.AltCloud != strings.TrimSpace(config) {
		t.Errorf("AltCloud reads %q", seen.AltCloud)
	}
}
