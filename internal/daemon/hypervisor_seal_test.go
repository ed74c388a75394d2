package daemon_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"imprint"
	"imprint/internal/seal"
)

// A change of the server's sealing key reaches the copy on a hypervisor: the key
// file that was there opens nothing that is there now, nor the new one what was
// there, and the machine's value is served from the copy all the same.
func TestRotationReachesHypervisors(t *testing.T) {
	t.Parallel()
	site := newSite(t)
	site.withHosts(t)
	server := site.start(t, nil)
	h := site.hypervisor(t)
	h.start(t, site.joinFile(t, hypervisorName))
	spec := serialOnly("web-1")
	spec.Host, spec.Params = hypervisorName, []imprint.Param{{Name: "db-password", Visibility: imprint.Private}}
	value := imprint.NewSecret([]byte("a private value"))
	created, err := server.Create(t.Context(), spec, map[string]imprint.Secret{"db-password": value}, false)
	if err != nil {
		t.Fatal(err)
	}
	h.untilConnected(t, server, "web-1")
	m := newMachine(t, h.run, created.Instance.ID)
	if err := m.enrol(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got, err := m.open(t.Context(), "db-password"); err != nil || !got.Equal(value) {
		t.Fatal(err)
	}

	read := func(name string) []byte {
		b, err := os.ReadFile(filepath.Join(h.data, name))
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		return b
	}
	sealed := func() (name string, blob []byte) {
		t.Helper()
		all, err := filepath.Glob(filepath.Join(h.data, "copy", "*.value"))
		if err != nil || len(all) != 1 {
			t.Fatalf("the copy has the values %q, %v", all, err)
		}
		name = filepath.Base(all[0])
		return name, read("copy/" + name)
	}
	open := func(keys []byte, name string, blob []byte) error {
		t.Helper()
		ring, err := seal.OpenFile(write(t, t.TempDir(), "kek", string(keys)))
		if err != nil {
			t.Fatal(err)
		}
		got, err := ring.Open(blob, "copy/"+name)
		if err == nil && !got.Equal(value) {
			t.Errorf("another value: %q", got.Reveal())
		}
		return err
	}
	until(t, "the host to follow the server's first key", func() bool { return len(read("kek.follows")) > 0 })
	rotate := func() (follows string) {
		t.Helper()
		out, err := site.cli("seal", "rotate")
		key, _, ok := strings.Cut(strings.TrimPrefix(out, "new key "), ";")
		if err != nil || !ok {
			t.Fatalf("%v\n%s", err, out)
		}
		return key
	}

	keys := read("kek")
	name, blob := sealed()
	if err := open(keys, name, blob); err != nil {
		t.Fatal(err)
	}
	follows := rotate()
	until(t, "the host to follow", func() bool { return string(read("kek.follows")) == follows })
	newKeys := read("kek")
	_, newBlob := sealed()
	if bytes.Count(newKeys, []byte("imprint-kek-v1")) != 1 || open(newKeys, name, newBlob) != nil || open(keys, name, newBlob) == nil || open(newKeys, name, blob) == nil {
		t.Error("the copy did not change its key")
	}
	modes(t, h.data)

	// A host that is away meanwhile follows when it is back.
	h.kill()
	follows = rotate()
	h.start(t, "")
	until(t, "the host to follow", func() bool { return string(read("kek.follows")) == follows })
	server.kill(syscall.SIGKILL)
	h.kill()
	h.start(t, "")
	if got, err := m.open(t.Context(), "db-password"); err != nil || !got.Equal(value) {
		t.Errorf("from the copy: %v", err)
	}
}
