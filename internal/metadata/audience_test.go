package metadata_test

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"imprint"
	"imprint/internal/metadata"
)

// userDataPaths are all ways to the user data.
var userDataPaths = []string{"/openstack/latest/user_data", "/openstack/2012-08-10/user_data", "/latest/user-data", "/ec2/1.0/user-data", "//latest//user-data/"}

const phoneHome = "/imprint/v1/phone-home"

func TestUserDataIsServedUntilTheBootIsClosed(t *testing.T) {
	t.Parallel()
	for name, closing := range map[string]func(*world){
		"the window ends":     func(w *world) { w.now = w.now.Add(time.Hour) },
		"the key is enrolled": func(w *world) { w.inst.Enrolment.State = imprint.Confirmed; w.render() },
		"it is closed":        func(w *world) { w.inst.Enrolment.State = imprint.Closed; w.render() },
		"it is contested":     func(w *world) { w.inst.Enrolment.State = imprint.InDispute; w.render() },
		"the record says so":  func(w *world) { w.options.Boot.Home = true; w.render() },
		"it phones home": func(w *world) {
			if status, _ := w.do(processPort, "POST", phoneHome, "hostname=web-1&pub_key_rsa=AAAA", "Content-Type", "application/x-www-form-urlencoded"); status != 200 {
				t.Errorf("phone home: %d", status)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, instance(), nil)
			w.options.Boot.Ends = w.now.Add(time.Hour)
			w.render()
			for _, path := range userDataPaths {
				if status, body := w.get(path); status != 200 || body != w.inst.Spec.UserData {
					t.Errorf("open: %s: %d", path, status)
				}
			}
			if _, body := w.get("/nocloud/user-data"); body != w.inst.Spec.UserData {
				t.Errorf("open: nocloud: %q", body)
			}
			closing(w)
			w.refusals()
			for _, from := range []string{processPort, rootPort} {
				for _, path := range userDataPaths {
					if status, body := w.do(from, "GET", path, ""); status != 404 || body != "Not Found\n" {
						t.Errorf("closed: %s from %s: %d %q", path, from, status, body)
					}
				}
				// To cloud-init a missing file of NoCloud would be ten seconds.
				if status, body := w.do(from, "GET", "/nocloud/user-data", ""); status != 200 || body != "" {
					t.Errorf("closed: nocloud from %s: %d %q", from, status, body)
				}
				if _, listing := w.do(from, "GET", "/openstack/latest", ""); strings.Contains(listing, "user_data") {
					t.Errorf("closed: listed to %s: %q", from, listing)
				}
			}
			refusals := w.refusals()
			if len(refusals) != 12 || slices.ContainsFunc(refusals, func(s string) bool { return !strings.HasPrefix(s, "the boot is closed") }) {
				t.Errorf("reported %q", refusals)
			}
			if status, _ := w.get("/latest/meta-data/hostname"); status != 200 {
				t.Errorf("public facts: %d", status)
			}
		})
	}
}

// A generation that phoned home says nothing about the next one.
func TestNextGenerationBootsAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t, instance(), nil)
	w.do(processPort, "POST", phoneHome, "a=b", "Content-Type", "application/x-www-form-urlencoded")
	if status, _ := w.get("/latest/user-data"); status != 404 {
		t.Errorf("closed: %d", status)
	}
	w.inst.Generation++
	w.render()
	if status, _ := w.get("/latest/user-data"); status != 200 {
		t.Errorf("a new life: %d", status)
	}
}

func TestPhoneHomeFormsAreBounded(t *testing.T) {
	t.Parallel()
	w := newWorld(t, instance(), nil)
	const form = "application/x-www-form-urlencoded"
	for _, c := range []struct{ kind, body string }{
		{"text/plain", "a=b"}, {"", "a=b"}, {form, "a=%zz"}, {form, strings.Repeat("a&", 40)}, {form, strings.Repeat("a", 65<<10)},
	} {
		if status, _ := w.do(processPort, "POST", phoneHome, c.body, "Content-Type", c.kind); status != 400 {
			t.Errorf("%.20q of type %q: %d", c.body, c.kind, status)
		}
	}
	if status, _ := w.get(phoneHome); status != 405 || w.form != nil {
		t.Errorf("GET: %d, form %v", status, w.form)
	}
	if status, _ := w.get("/latest/user-data"); status != 200 {
		t.Errorf("a refused form closed the boot: %d", status)
	}
}

// Nothing that an unprivileged process can ask for yields a private value, and
// root gets them from its own port only.
func TestPrivateValuesNeedAPrivilegedPort(t *testing.T) {
	t.Parallel()
	w := newWorld(t, instance(), nil)
	const params = "/ganeti/latest/os/parameters.json"
	for path, want := range map[string][2]string{ // to a process, and to root
		"/imprint/v1/param/token": {"403 Forbidden\n", "200 value of token"},
		"/imprint/v1/param/motd":  {"200 value of motd", "200 value of motd"},
		"/imprint/v1/pipe":        {"403 Forbidden\n", "200 value of imprint:pipe"},
		// Secret values are the key holder's, whatever the port.
		"/imprint/v1/param/disk-key":  {"403 Forbidden\n", "403 Forbidden\n"},
		"/imprint/v1/sealed/disk-key": {"200 value of imprint:sealed/disk-key", "200 value of imprint:sealed/disk-key"},
		params:                        {`200 {"motd":["hello","public"]}`, `200 {"motd":["hello","public"],"token":["value of token","private"]}`},
	} {
		for i, from := range []string{processPort, rootPort} {
			status, body := w.do(from, "GET", path, "")
			if got := strconv.Itoa(status) + " " + body; got != want[i] {
				t.Errorf("%s from %s: %q, want %q", path, from, got, want[i])
			}
		}
	}
	// A listener whose source ports prove nothing has no root.
	other := newWorld(t, instance(), func(c *metadata.Config) { c.SourcePorts = false })
	for _, path := range []string{"/imprint/v1/param/token", "/imprint/v1/pipe"} {
		if status, _ := other.do(rootPort, "GET", path, ""); status != 403 {
			t.Errorf("%s without meaningful ports: %d", path, status)
		}
	}
	if _, body := other.do(rootPort, "GET", params, ""); strings.Contains(body, "token") {
		t.Errorf("parameters without meaningful ports: %s", body)
	}
}

// generous would give anything to anybody.
type generous struct{ *world }

func (generous) Get(context.Context, metadata.Origin, string) ([]byte, error) {
	return []byte("value"), nil
}

// The parameters' file has no secret value, even if somebody would give it out.
func TestGanetiParametersHoldNoSecret(t *testing.T) {
	t.Parallel()
	w := newWorld(t, instance(), func(c *metadata.Config) { c.Native = generous{c.Native.(*world)} })
	if _, body := w.do(rootPort, "GET", "/ganeti/latest/os/parameters.json", ""); strings.Contains(body, "disk-key") || !strings.Contains(body, "token") {
		t.Errorf("%s", body)
	}
}

func TestReadsAreReportedOnceAClassAndUserDataAlways(t *testing.T) {
	t.Parallel()
	w := newWorld(t, instance(), nil)
	for range 3 {
		w.get("/latest/meta-data/hostname")
		w.get("/openstack/latest/user_data")
		w.do(rootPort, "GET", "/latest/meta-data/hostname", "")
	}
	var got []string
	for _, a := range w.accesses {
		got = append(got, a.Name+" "+strconv.Itoa(int(a.Origin.Port)))
		if a.Refused != "" || !a.At.Equal(w.now) || a.Origin.Root() != (a.Origin.Port == 900) {
			t.Errorf("access %+v", a)
		}
	}
	user := "openstack/latest/user_data 40000"
	if want := []string{"latest/meta-data/hostname 40000", user, "latest/meta-data/hostname 900", user, user}; !slices.Equal(got, want) {
		t.Errorf("reported %q, want %q", got, want)
	}
	w.inst.Generation++
	w.render()
	w.accesses = nil
	w.get("/latest/meta-data/hostname")
	if len(w.accesses) != 1 {
		t.Errorf("in the next generation: %+v", w.accesses)
	}
}

func TestRefusalsAreRationedAndFitToBeShown(t *testing.T) {
	t.Parallel()
	w := newWorld(t, instance(), nil)
	w.get("/imprint/v1/param/token")
	if reasons := w.refusals(); len(reasons) != 1 || len(reasons[0]) != 256 || !strings.HasPrefix(reasons[0], "read token: not for its readers?[2Jx") {
		t.Errorf("reasons %q", reasons)
	}
	w = newWorld(t, instance(), nil)
	for range 1000 {
		w.do(processPort, "GET", "/imprint/v1/param/token\x1b[2J"+strings.Repeat("x", 500), "", "Via", "1.1 proxy")
	}
	if len(w.accesses) != 20 {
		t.Errorf("%d refusals were reported", len(w.accesses))
	}
	if name := w.accesses[0].Name; len(name) != 128 || strings.Contains(name, "\x1b") || !strings.HasPrefix(name, "imprint/v1/param/token?[2J") {
		t.Errorf("name %q", name)
	}
	w.do(rootPort, "GET", "/", "", "Via", "1.1 proxy")
	if n := len(w.accesses); n != 21 || !w.accesses[20].Origin.Root() { // root has a ration of its own
		t.Fatalf("%d accesses after one of root", n)
	}
	w.accesses = w.accesses[:20]
	w.get("/latest/user-data")
	if len(w.accesses) != 21 { // reads have a ration of their own
		t.Errorf("%d accesses after a read", len(w.accesses))
	}
	for range 1000 {
		w.get("/latest/user-data")
	}
	if len(w.accesses) != 41 { // the first, and a burst
		t.Errorf("%d accesses after many reads", len(w.accesses))
	}
	w.accesses = w.accesses[:20]
	w.now = w.now.Add(2 * time.Minute)
	for range 10 {
		w.do(processPort, "GET", "/", "", "Via", "1.1 proxy")
	}
	if len(w.accesses) != 22 {
		t.Errorf("%d refusals after two minutes", len(w.accesses))
	}
}
