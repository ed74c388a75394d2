package imprint_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"imprint"
)

var update = flag.Bool("update", false, "write the golden files")

// The audience rule, spelled out for every visibility and channel: a row that
// changes here changes who can read what.
func TestAudienceRule(t *testing.T) {
	tests := []struct {
		channel                 imprint.ChannelKind
		public, private, secret bool
	}{
		{imprint.VirtioSerial, true, true, false},
		{imprint.Serial2, true, true, false},
		{imprint.LinkLocal, true, false, false}, // see below for who asks from a privileged port
		{imprint.Neutron, true, false, false},
		{imprint.NetworkEST, true, true, true},
		{imprint.File, true, false, false},
	}
	if len(tests) != len(imprint.Channels()) {
		t.Fatalf("%d channels exist, %d are tested", len(imprint.Channels()), len(tests))
	}
	for _, tt := range tests {
		c, ok := imprint.ChannelOf(tt.channel)
		if !ok {
			t.Fatalf("channel %s is unknown", tt.channel)
		}
		for v, want := range map[imprint.Visibility]bool{
			imprint.Public: tt.public, imprint.Private: tt.private, imprint.SecretOnly: tt.secret,
			"": false, "Public": false,
		} {
			if got := imprint.MayTravel(v, c.Readers); got != want {
				t.Errorf("a %q value over %s: %v, want %v", v, tt.channel, got, want)
			}
		}
	}
	nic, _ := imprint.ChannelOf(imprint.LinkLocal)
	root, any := nic.From(imprint.PortReaders(80)), nic.From(imprint.PortReaders(40000))
	if !imprint.MayTravel(imprint.Private, root.Readers) || imprint.MayTravel(imprint.SecretOnly, root.Readers) || !root.Private() {
		t.Errorf("root over the link-local network: %+v", root)
	}
	if imprint.MayTravel(imprint.Private, any.Readers) || any.Private() {
		t.Errorf("any process over the link-local network: %+v", any)
	}
	// What is sealed to the enrolled key may go anywhere; an unknown set of readers nowhere.
	for _, v := range []imprint.Visibility{imprint.Public, imprint.Private, imprint.SecretOnly} {
		if !imprint.MayTravel(v, imprint.KeyHolder) {
			t.Errorf("a sealed %s value may not travel", v)
		}
		if imprint.MayTravel(v, 0) {
			t.Errorf("a %s value travels to unknown readers", v)
		}
	}
}

// What the capacity promises must fit the frame of the serial protocol, which
// holds 12 KiB, sealed and in base64 as well.
func TestSealedValuesFitTheirChannel(t *testing.T) {
	for _, c := range imprint.Channels() {
		if c.Capacity == 0 {
			continue
		}
		const box = 1 + 97 + 16 // internal/keybox: version, P-384 point, tag
		if n := base64.StdEncoding.EncodedLen(c.SealedCapacity() + box); n > c.Capacity {
			t.Errorf("%s: a sealed value of %d bytes takes %d of %d", c.Kind, c.SealedCapacity(), n, c.Capacity)
		}
	}
}

func TestOnlyTwoWayChannelsOfTheHostArePrivate(t *testing.T) {
	for _, c := range imprint.Channels() {
		want := c.Kind == imprint.VirtioSerial || c.Kind == imprint.Serial2 || c.Kind == imprint.LinkLocal
		if c.Private() != want {
			t.Errorf("%s: Private = %v", c.Kind, c.Private())
		}
	}
}

// Over what anybody can use, or what carries nothing back, no machine enrols.
func TestChannelsOverWhichMachinesEnrol(t *testing.T) {
	for _, c := range imprint.Channels() {
		want := c.Kind != imprint.Neutron && c.Kind != imprint.File
		if c.Enrols() != want {
			t.Errorf("%s: Enrols = %v", c.Kind, c.Enrols())
		}
	}
}

func TestSecretsShowNothing(t *testing.T) {
	const canary = "c4nary"
	type holder struct{ Password imprint.Secret }
	s := imprint.NewSecret([]byte(canary))
	var logged bytes.Buffer
	slog.New(slog.NewJSONHandler(&logged, nil)).Info("x", "secret", s, "holder", holder{s})
	marshalled, err := json.Marshal(holder{s})
	if err != nil {
		t.Fatal(err)
	}
	shown := []string{logged.String(), string(marshalled), s.String(), fmt.Sprint(errors.Join(fmt.Errorf("got %v", s)))}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d"} {
		shown = append(shown, fmt.Sprintf(verb, s), fmt.Sprintf(verb, holder{s}), fmt.Sprintf(verb, &holder{s}))
	}
	for _, out := range shown {
		if strings.Contains(out, canary) || strings.Contains(strings.ToLower(out), fmt.Sprintf("%x", canary)) || strings.Contains(out, "99 52 110") {
			t.Errorf("shows the secret: %s", out)
		}
	}
	if !s.Equal(imprint.NewSecret([]byte(canary))) || s.Equal(imprint.NewSecret([]byte("c4narz"))) || s.Equal(imprint.Secret{}) {
		t.Error("Equal is wrong")
	}
}

func samplePayload() *imprint.Payload {
	return &imprint.Payload{
		Version: imprint.PayloadVersion, Time: time.Date(2026, 11, 21, 8, 0, 0, 0, time.UTC),
		Instance: "6f1d0c1e-7d0c-4f5e-9c39-5b1f4c1b7e11", Generation: 2, Tenant: "default", Name: "web-1",
		DNSNames: []string{"web-1.lab.internal"}, IPs: []netip.Addr{netip.MustParseAddr("10.0.0.7")},
		Network: &imprint.Network{Ethernets: map[string]imprint.Ethernet{"lan": {
			MAC: "52:54:00:12:34:56", Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.0.7/24")},
			Routes:      []imprint.Route{{To: "default", Via: netip.MustParseAddr("10.0.0.1")}},
			Nameservers: imprint.Nameservers{Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1")}, Search: []string{"lab.internal"}},
		}}},
		CA: "-----BEGIN CERTIFICATE-----\nMA==\n-----END CERTIFICATE-----\n", CheckIn: []string{"https://imprint.lab.internal:8443"},
		Token: "kqUO8e0kqJ9p0lSc6rXj1w",
	}
}

// Every released version of the payload stays readable: its vector is never changed.
func TestPayloadVector(t *testing.T) {
	got, err := samplePayload().Encode()
	if err != nil {
		t.Fatal(err)
	}
	const golden = "testdata/payload-v1.json"
	if *update {
		if err := os.WriteFile(golden, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("the payload's bytes changed:\n%s\nwant\n%s", got, want)
	}
	p, err := imprint.DecodePayload(want)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := p.Encode(); err != nil || !bytes.Equal(again, want) {
		t.Errorf("decoded and encoded again: %s, %v", again, err)
	}
}

func TestPayloadsThatAreRefused(t *testing.T) {
	vector, _ := samplePayload().Encode()
	big := samplePayload()
	big.CA = strings.Repeat("A", imprint.MaxPayload)
	if _, err := big.Encode(); imprint.KindOf(err) != imprint.Exhausted {
		t.Errorf("oversize: %v", err)
	}
	replace := func(old, new string) []byte { return bytes.Replace(vector, []byte(old), []byte(new), 1) }
	for name, b := range map[string][]byte{
		"empty":              nil,
		"cut":                vector[:len(vector)/2],
		"trailing bytes":     append(bytes.Clone(vector), "{}"...),
		"too long":           bytes.Repeat([]byte(" "), imprint.MaxPayload+1),
		"version 2":          replace(`"imprint":1`, `"imprint":2`),
		"no generation":      replace(`"generation":2`, `"generation":0`),
		"negative":           replace(`"generation":2`, `"generation":-1`),
		"instance not an ID": replace("6f1d0c1e", "../../../"),
		"name with a slash":  replace(`"name":"web-1"`, `"name":"a/b"`),
		"tenant with a path": replace(`"tenant":"default"`, `"tenant":"x/../../../../etc/ssl/private/web"`),
		"no tenant":          replace(`"tenant":"default"`, `"tenant":""`),
		"year 2610":          replace(`"time":"20`, `"time":"26`),
		"no CA":              replace("-----BEGIN CERTIFICATE-----\\nMA==\\n-----END CERTIFICATE-----\\n", ""),
	} {
		if _, err := imprint.DecodePayload(b); imprint.KindOf(err) != imprint.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzDecodePayload(f *testing.F) {
	vector, _ := samplePayload().Encode()
	f.Add(vector)
	f.Add([]byte(`{"imprint":1}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := imprint.DecodePayload(b)
		if err != nil {
			if imprint.KindOf(err) != imprint.Invalid {
				t.Errorf("kind %v: %v", imprint.KindOf(err), err)
			}
			return
		}
		if out, err := p.Encode(); err == nil {
			if _, err := imprint.DecodePayload(out); err != nil {
				t.Errorf("what was encoded does not decode: %v", err)
			}
		}
	})
}

func TestNames(t *testing.T) {
	for _, good := range []string{"a", "web-1", "0", strings.Repeat("a", 63)} {
		if err := imprint.CheckLabel("name", good); err != nil {
			t.Errorf("%q: %v", good, err)
		}
	}
	for _, bad := range []string{"", "-a", "a-", "A", "a.b", "a_b", "a/b", "..", "ä", "a b", "a\n", "a\x00", strings.Repeat("a", 64)} {
		err := imprint.CheckLabel("name", bad)
		if imprint.KindOf(err) != imprint.Invalid || imprint.HintOf(err) == "" || !strings.Contains(err.Error(), "name") {
			t.Errorf("%q: %v", bad, err)
		}
	}
	for _, bad := range []string{"", "a..b", ".a", "a.", "*.a", strings.Repeat("a.", 127) + "ab"} {
		if err := imprint.CheckDNSName("dnsNames", bad); imprint.KindOf(err) != imprint.Invalid {
			t.Errorf("DNS name %q: %v", bad, err)
		}
	}
}

func TestIdentifiers(t *testing.T) {
	seen := map[imprint.InstanceID]bool{}
	for range 1000 {
		id := imprint.NewInstanceID()
		if seen[id] || !imprint.ValidID(string(id)) || id[14] != '4' || !strings.ContainsRune("89ab", rune(id[19])) {
			t.Fatalf("%s is not a fresh version 4 UUID", id)
		}
		seen[id] = true
		s := imprint.NewSerial()
		n, ok := s.Int()
		if !ok || imprint.SerialOf(n) != s || n.BitLen() > 159 || len(n.Bytes()) != 16 {
			t.Fatalf("serial %s", s)
		}
	}
	for _, bad := range []imprint.Serial{"", "0", "-1", "AB", "0x1", "g", imprint.Serial(strings.Repeat("1", 41))} {
		if n, ok := bad.Int(); ok {
			t.Errorf("serial %q = %v", bad, n)
		}
	}
}

func TestIdentifiersOfOthers(t *testing.T) {
	for _, good := range []string{
		"7c9e6679-7425-40de-944b-e07fc1f90ae7", // version 4, as Nova draws them
		"017f22e2-79b0-7cc3-98c4-dc0c0c07398f", // version 7
		"4c4c4544-0042-3510-8054-b4c04f593132", // of a mainboard, of no variant
		"00000000-0000-0000-0000-000000000001",
	} {
		if err := imprint.CheckID("id", good); err != nil {
			t.Error(err)
		}
	}
	for bad, want := range map[string]string{
		"":                                       "hint: write it like 7c9e6679-",
		"web-1":                                  `check id: "web-1" is not a UUID`,
		"7c9e6679742540de944be07fc1f90ae7":       "is not a UUID",
		"{7c9e6679-7425-40de-944b-e07fc1f90ae7}": "is not a UUID",
		"7c9e6679-7425-40de-944b-e07fc1f90ae7\n": "is not a UUID",
		"7C9E6679-7425-40DE-944B-E07FC1F90AE7":   "hint: write it as 7c9e6679-7425-40de-944b-e07fc1f90ae7",
		"00000000-0000-0000-0000-000000000000":   "is no machine's UUID",
		"ffffffff-ffff-ffff-ffff-ffffffffffff":   "hint: give the machine's own, or leave it out",
	} {
		err := imprint.CheckID("id", bad)
		if text := fmt.Sprintf("%v; hint: %s", err, imprint.HintOf(err)); imprint.KindOf(err) != imprint.Invalid || !strings.Contains(text, want) {
			t.Errorf("%q: %s; want %q", bad, text, want)
		}
	}
	if err := imprint.CheckID("id", strings.Repeat("f", 1<<20)); err == nil || len(err.Error()) > 200 {
		t.Error("a long one is shown at its full length")
	}
}

func TestDurations(t *testing.T) {
	for text, want := range map[string]time.Duration{"7d": 7 * 24 * time.Hour, "36h": 36 * time.Hour, "90s": 90 * time.Second, "0s": 0} {
		d, err := imprint.ParseDuration(text)
		if err != nil || time.Duration(d) != want {
			t.Errorf("%s = %v, %v", text, d, err)
		}
		back, err := imprint.ParseDuration(d.String())
		if err != nil || back != d {
			t.Errorf("%s writes %s, which reads %v, %v", text, d, back, err)
		}
	}
	for _, bad := range []string{"", "d", "-1d", "1.5d", "-3h", "99999d", "week", "7 d"} {
		if _, err := imprint.ParseDuration(bad); imprint.KindOf(err) != imprint.Invalid {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestErrors(t *testing.T) {
	cause := imprint.Errorf(imprint.NotFound, "get", "web-1", "no such instance").WithHint("list them with: imprint get")
	err := fmt.Errorf("outer: %w", imprint.Errorf(imprint.Conflict, "boot", "web-1", "%w", cause))
	if got := err.Error(); got != "outer: boot web-1: get web-1: no such instance" {
		t.Errorf("reads %q", got)
	}
	if imprint.KindOf(err) != imprint.Conflict || imprint.HintOf(err) != "list them with: imprint get" {
		t.Errorf("kind %v, hint %q", imprint.KindOf(err), imprint.HintOf(err))
	}
	if imprint.KindOf(errors.New("x")) != imprint.Internal || imprint.HintOf(errors.New("x")) != "" {
		t.Error("a foreign error is not internal")
	}
	for k := imprint.Internal; k <= imprint.Contested; k++ {
		if imprint.ParseKind(k.String()) != k {
			t.Errorf("%v does not parse back", k)
		}
	}
}

// FuzzParseDuration: what is accepted is not negative and reads back as it is
// written.
func FuzzParseDuration(f *testing.F) {
	for _, s := range []string{"7d", "0d", "65535d", "65536d", "36h", "90s", "1h30m", "-1s", "-0s", "", "d", "+1d", "1.5d", "1e9h", "9223372036854775807ns", "²d"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		d, err := imprint.ParseDuration(s)
		if err != nil {
			if imprint.KindOf(err) != imprint.Invalid || d != 0 {
				t.Errorf("%q: %v, %v", s, d, err)
			}
			return
		}
		if d < 0 {
			t.Errorf("%q is %d", s, d)
		}
		if again, err := imprint.ParseDuration(d.String()); err != nil || again != d {
			t.Errorf("%q is written %q, which is %v, %v", s, d, again, err)
		}
	})
}

func TestSourcePortsTellWhoCanRead(t *testing.T) {
	t.Parallel()
	for port, want := range map[uint16]imprint.Readers{
		1: imprint.GuestRoot, 1023: imprint.GuestRoot,
		0: imprint.GuestProcesses | imprint.GuestRoot, 1024: imprint.GuestProcesses | imprint.GuestRoot, 65535: imprint.GuestProcesses | imprint.GuestRoot,
	} {
		if got := imprint.PortReaders(port); got != want {
			t.Errorf("port %d: readers %b, want %b", port, got, want)
		}
	}
}

func TestUserDataBelongsToTheKeyOnceTheBootIsClosed(t *testing.T) {
	t.Parallel()
	user := imprint.Value{Visibility: imprint.Public, BootOnly: true}
	for _, readers := range []imprint.Readers{imprint.GuestProcesses | imprint.GuestRoot, imprint.GuestRoot} {
		if !imprint.MayTravel(user.At(false), readers) || imprint.MayTravel(user.At(true), readers) {
			t.Errorf("readers %b", readers)
		}
	}
	if !imprint.MayTravel(user.At(true), imprint.KeyHolder) {
		t.Error("the key's holder may not read it")
	}
	if motd := (imprint.Value{Visibility: imprint.Public}); motd.At(true) != imprint.Public {
		t.Error("what is always public is not")
	}
}

// A token goes only where nobody reads it who could not be the machine anyway.
func TestTokensTravelNarrowly(t *testing.T) {
	t.Parallel()
	for readers, want := range map[imprint.Readers]bool{
		0:                 false,
		imprint.GuestRoot: true,
		imprint.GuestRoot | imprint.PlatformAdmins:                          true,
		imprint.GuestRoot | imprint.PlatformAdmins | imprint.GuestProcesses: false,
		imprint.GuestRoot | imprint.Neighbours:                              false,
		imprint.GuestRoot | imprint.HostProcesses:                           false,
	} {
		if imprint.MayHoldToken(readers) != want {
			t.Errorf("readers %b: %v", readers, !want)
		}
	}
}
