package host_test

import (
	"testing"

	"imprint"
	"imprint/internal/host"
)

// A record of another past counts after a rewind and not before, and takes the
// secret values of a life with it that there has not been.
func TestRewound(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id := w.reserve("web-1")
	secrets := host.NewSecrets()
	h, _ := start(t, w, runDir(t), func(c *host.Config) { c.Secrets = secrets })
	c := connect(t, h, id, imprint.VirtioSerial)
	motd := func(want string) {
		t.Helper()
		w.settle(t)
		if b, err := c.Get(t.Context(), "imprint:param/motd"); err != nil || string(b) != want {
			t.Errorf("motd is %q, %v; want %q", b, err, want)
		}
	}
	with := func(i *imprint.Instance, value string) {
		i.Spec.Params = []imprint.Param{{Name: "motd", Visibility: imprint.Public, Value: value}, {Name: "disk-key", Visibility: imprint.SecretOnly}}
	}
	w.mu.Lock()
	old := w.instances[id].Clone()
	w.mu.Unlock()
	motd("hello")
	w.change(id, func(i *imprint.Instance) { with(i, "new"); i.Generation = 2 })
	motd("new")
	if err := secrets.Put(id, 2, "disk-key", imprint.NewSecret([]byte("of the second life"))); err != nil {
		t.Fatal(err)
	}
	with(old, "old")
	tell := func(notices ...host.Notice) {
		w.mu.Lock()
		defer w.mu.Unlock()
		for _, n := range notices {
			w.tell(n)
		}
	}
	tell(host.Notice{Instance: old})
	motd("new")
	tell(host.Notice{Rewound: true}, host.Notice{Instance: old, Relist: true}, host.Notice{Synced: true})
	motd("old")
	if _, held := secrets.Get(id, 2, "disk-key"); held {
		t.Error("a value of a life that there has not been is held")
	}
	if err := secrets.Put(id, 1, "disk-key", imprint.NewSecret([]byte("of the first life"))); err != nil {
		t.Error(err)
	}

	// From there on revisions count as ever.
	older := old.Clone()
	older.Revision--
	with(older, "older")
	tell(host.Notice{Instance: older})
	motd("old")
	next := old.Clone()
	next.Revision++
	with(next, "next")
	tell(host.Notice{Instance: next})
	motd("next")
}
