package daemon

import (
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"imprint"
)

// FuzzConfig gives a configuration that somebody wrote: it is refused with one
// clear sentence, or it can be written and read again and still passes.
func FuzzConfig(f *testing.F) {
	f.Add([]byte(ExampleConfig))
	f.Add([]byte("name: host-1\ncheckIn: {listen: ':8443', perAddress: .nan, total: -1}\n"))
	f.Add([]byte("tenants:\n  - name: default\n    domains: [lab.example]\n    networks: [192.0.2.0/24, 'fd00::/8']\n"))
	f.Add([]byte("tenants: [{name: default, domains: [a]}, {name: default, domains: [b]}]"))
	f.Add([]byte("store: {endpoints: ['https://etcd-1:2379'], cert: c}\n"))
	f.Add([]byte("api: {listen: ':1', cert: c, key: k, clientCA: a, allow: [x]}\n---\n"))
	f.Add([]byte("a: &a [*a]\n"))
	f.Add([]byte("nosuch: 1\n"))
	read := func(t *testing.T, b []byte) (*Settings, error) {
		c := DefaultConfig()
		if err := parseConfig("server.yaml", "imprint config example", b, &c); err != nil {
			return nil, err
		}
		return c.Check()
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > maxConfig {
			return
		}
		s, err := read(t, b)
		if err != nil {
			if imprint.KindOf(err) != imprint.Invalid || strings.Contains(err.Error(), "daemon.") {
				t.Errorf("refused with %v: %v", imprint.KindOf(err), err)
			}
			return
		}
		if _, err := s.Tenant(imprint.DefaultTenant); err != nil || s.Data[0] != '/' || s.Run[0] != '/' || s.Socket == "" || s.KeyFile == "" {
			t.Errorf("accepted %+v, %v", s, err)
		}
		again, err := yaml.Marshal(s.Config)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := read(t, again); err != nil {
			t.Errorf("what passed does not pass when it is written again: %v\n%s", err, again)
		}
	})
}
