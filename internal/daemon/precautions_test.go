package daemon_test

import (
	"os"
	"testing"

	"imprint"
	"imprint/internal/daemon"
	"imprint/test/need"
)

// Whoever can exchange the key file owns all that is sealed with it from then on.
func TestOthersMayNotChangeTheData(t *testing.T) {
	t.Parallel()
	need.Root(t)
	for name, spoil := range map[string]func(dir string) error{
		"mode":  func(dir string) error { return os.Chmod(dir, 0o770) },
		"owner": func(dir string) error { return os.Chown(dir, 65534, -1) },
	} {
		s := newSite(t)
		if err := os.Mkdir(s.config.Data, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := spoil(s.config.Data); err != nil {
			t.Fatal(err)
		}
		d, err := daemon.Open(t.Context(), s.settings(t), daemon.Options{})
		if err == nil {
			d.Close()
		}
		if imprint.KindOf(err) != imprint.Denied || imprint.HintOf(err) == "" {
			t.Errorf("%s: %v", name, err)
		}
	}
}
