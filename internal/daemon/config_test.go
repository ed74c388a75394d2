package daemon_test

import (
	"math"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"imprint"
	"imprint/internal/daemon"
	"imprint/internal/est"
)

// The example is a valid file, and every line in it says the default: also those
// that are commented out, where it does not depend on the machine.
func TestTheExampleIsTheDefault(t *testing.T) {
	path := filepath.Join(t.TempDir(), "server.yaml")
	read := func(text string) daemon.Config {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := daemon.ReadConfig(path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Check(); err != nil {
			t.Fatal(err)
		}
		return c
	}
	want := daemon.DefaultConfig()
	want.CheckIn.URLs, want.Store.Endpoints, want.Hosts.Domains, want.DNS = []string{}, []string{}, []string{}, []string{}
	if got := read(daemon.ExampleConfig); !reflect.DeepEqual(got, want) {
		t.Errorf("the example is %+v;\nthe default is %+v", got, want)
	}

	values := regexp.MustCompile(`(?m)^( *)# (operator|bootWindow|trustDomain|signer|group|guestOwner|perAddress|total|checkIn|privateNetwork):`)
	limits := est.DefaultLimits()
	want.CheckIn.PerAddress, want.CheckIn.Total = limits.Rate, limits.TotalRate
	want.Tenancy[0].CheckIn = "imprint.internal"
	if got := read(values.ReplaceAllString(daemon.ExampleConfig, "$1$2:")); !reflect.DeepEqual(got, want) {
		t.Errorf("with its comments the example is %+v;\nthe default is %+v", got, want)
	}
}

// What the example says about dial and adopt is right, too, once it is no comment.
func TestTheExamplesEntriesAreValid(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "server.yaml")
	text := regexp.MustCompile(`(?m)^  # (- channel|  socket|- interface|  instance):`).ReplaceAllString(daemon.ExampleConfig, "  $1:")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := daemon.ReadConfig(path)
	if err != nil {
		t.Fatal(err)
	}
	s, err := c.Check()
	if err != nil || !reflect.DeepEqual(s.Dial, []daemon.DialConfig{{Channel: "serial", Socket: "/run/qemu/{name}.sock"}}) {
		t.Errorf("dial is %+v, %v", s, err)
	}
	if err == nil && !reflect.DeepEqual(s.Adopt, []daemon.AdoptConfig{{Interface: "vnet*"}}) {
		t.Errorf("adopt is %+v", s.Adopt)
	}
}

// So is that of imprint host.
func TestTheHostsExampleIsTheDefault(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "host.yaml")
	read := func(text string) daemon.HostConfig {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := daemon.ReadHostConfig(path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Check(); err != nil {
			t.Fatal(err)
		}
		return c
	}
	want := daemon.DefaultHostConfig()
	want.DNS = []string{}
	if got := read(daemon.ExampleHostConfig); !reflect.DeepEqual(got, want) {
		t.Errorf("the example is %+v;\nthe default is %+v", got, want)
	}
	values := regexp.MustCompile(`(?m)^# (guestOwner|connect):`)
	if got := read(values.ReplaceAllString(daemon.ExampleHostConfig, "$1:")); !reflect.DeepEqual(got, want) {
		t.Errorf("with its comments the example is %+v;\nthe default is %+v", got, want)
	}
}

// What follows from other fields is filled in.
func TestCheckFillsIn(t *testing.T) {
	t.Parallel()
	c := daemon.DefaultConfig()
	c.Data, c.Run = "/data", "/run"
	s, err := c.Check()
	if err != nil {
		t.Fatal(err)
	}
	if s.Socket != "/run/imprint.sock" || s.KeyFile != "/data/kek" || s.Tenants[0].CheckIn != "imprint.internal" {
		t.Errorf("filled in: %+v", s)
	}
	if _, err := s.Tenant("nobody"); imprint.KindOf(err) != imprint.NotFound {
		t.Errorf("Tenant(nobody): %v", err)
	}
}

// Rates that are no rates are refused, with the field's name.
func TestRatesAreChecked(t *testing.T) {
	t.Parallel()
	for _, rate := range []float64{-1, math.NaN(), math.Inf(1), 1e9} {
		c := daemon.DefaultConfig()
		c.CheckIn.PerAddress = rate
		if _, err := c.Check(); imprint.KindOf(err) != imprint.Invalid || !strings.Contains(err.Error(), "checkIn.perAddress") {
			t.Errorf("%v: %v", rate, err)
		}
	}
}

// A time for user data that nobody can mean is refused.
func TestTheBootWindowIsChecked(t *testing.T) {
	t.Parallel()
	for window, fine := range map[time.Duration]bool{0: false, time.Second: false, time.Minute: true, 30 * 24 * time.Hour: true, 31 * 24 * time.Hour: false} {
		c := daemon.DefaultConfig()
		c.BootWindow = imprint.Duration(window)
		if _, err := c.Check(); (err == nil) != fine || !fine && !strings.Contains(err.Error(), "check bootWindow: ") {
			t.Errorf("%s: %v", window, err)
		}
	}
}
