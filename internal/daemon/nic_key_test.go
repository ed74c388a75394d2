package daemon_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"imprint"
	"imprint/internal/dialect"
	"imprint/internal/keybox"
)

// TestLinkLocalAfterTheBoot: once the boot is closed the enrolled key, and nothing
// else, reads the user data and the private values over the interface.
func TestLinkLocalAfterTheBoot(t *testing.T) {
	_, server, ok := onLinkLocal(t)
	if !ok {
		return
	}
	const userData, private = "#cloud-config\n# canary of web-1\n", "private canary"
	created, err := server.Create(t.Context(), imprint.Spec{
		Name: "web-1", DNSNames: []string{"web-1.lab.internal"}, Channels: []imprint.ChannelKind{imprint.LinkLocal}, UserData: userData,
		Params: []imprint.Param{{Name: "token", Visibility: imprint.Private}},
	}, map[string]imprint.Secret{"token": imprint.NewSecret([]byte(private))}, false)
	if err != nil {
		t.Fatal(err)
	}
	g := plugIn(t, server, "web-1")
	g.want(t, false, "/latest/user-data", 200, userData)
	g.want(t, false, "/imprint/v1/user-data", 409, "no key is enrolled to seal it to")

	root := agentIn(t, g)
	for _, path := range []string{"/latest/user-data", "/openstack/latest/user_data"} {
		for _, asRoot := range []bool{false, true} {
			g.want(t, asRoot, path, 404, "Not Found")
		}
	}
	g.want(t, true, "/imprint/v1/param/token", 403, "")
	onTimeline(t, server.Client, "web-1",
		"refused latest/user-data: the boot is closed; user data needs the enrolled key from any process, source port ",
		"refused imprint/v1/param/token: read token: the enrolment is closed")

	// The key's holder has both, whoever fetches them.
	if got := agentDoes(t, g, root, "user-data"); got != userData {
		t.Errorf("the agent reads %q", got)
	}
	if got := agentDoes(t, g, root, "param", "--live", "token"); got != private {
		t.Errorf("the agent reads %q", got)
	}
	onTimeline(t, server.Client, "web-1", "served imprint/v1/user-data from ", "read ")
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for path, name := range map[string]string{"user-data": dialect.KeyUserData, "sealed/token": "token"} {
		status, body := g.ask(t, false, "GET", "/imprint/v1/"+path, "")
		box, err := base64.StdEncoding.DecodeString(body)
		if status != 200 || err != nil || strings.Contains(string(box), "canary") {
			t.Fatalf("%s: %d, %v", path, status, err)
		}
		info := keybox.Info{Instance: created.Instance.ID, Generation: 1, Name: name}
		if _, err := keybox.Open(other, info, box); imprint.KindOf(err) != imprint.Invalid {
			t.Errorf("another key opens %s: %v", path, err)
		}
		again, _ := g.ask(t, false, "GET", "/imprint/v1/"+path, "")
		if again != 200 {
			t.Errorf("%s once more: %d", path, again)
		}
	}
	// Nobody makes the host seal the user data again and again.
	_, first := g.ask(t, false, "GET", "/imprint/v1/user-data", "")
	if _, second := g.ask(t, true, "GET", "/imprint/v1/user-data", ""); second != first {
		t.Error("the user data is sealed for each request")
	}

	// The agent keeps it nowhere.
	filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && !strings.HasSuffix(path, "/run/imprint/params/token") {
			if b, _ := os.ReadFile(path); strings.Contains(string(b), "canary") {
				t.Errorf("%s has a value", path)
			}
		}
		if d != nil && d.Name() == "proc" {
			return filepath.SkipDir
		}
		return nil
	})
}
