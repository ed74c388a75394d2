package cli

import (
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"imprint"
	"imprint/internal/media"
)

// What is said of a medium that could not be written is so: in a directory that may
// be written but not read it has its name, and is not said to be none.
func TestUnwrittenMedium(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"iso", "fw-cfg"} {
		for _, closed := range []bool{false, true} {
			dir := t.TempDir()
			path := filepath.Join(dir, "medium")
			done := make(chan imprint.MediumState)
			go func() {
				defer close(done)
				runtime.LockOSThread() // and it ends with this, so nobody else gets its identity
				if closed && os.Getuid() == 0 {
					const nobody = 65534
					for _, err := range []error{os.Chmod(filepath.Dir(dir), 0o711), os.Chown(dir, nobody, nobody), os.Chmod(dir, 0o300), unix.Setfsuid(nobody)} {
						if err != nil {
							t.Error(err)
						}
					}
				} else if closed {
					os.Chmod(dir, 0o300)
				}
				carrier, err := media.CarrierOf(name)
				if err != nil {
					t.Error(err)
					return
				}
				out, err := (&program{}).mediumOut(carrier, path)
				if err != nil {
					t.Error(err)
					return
				}
				if !closed {
					if err := os.WriteFile(path, nil, 0o600); err != nil { // somebody else's
						t.Error(err)
					}
				}
				err = out.write(&media.Volume{Label: "IMPRINT", Time: time.Unix(2e9, 0), Files: map[string][]byte{"org.imprint/payload": []byte("token")}}, 0, nil)
				if err == nil {
					t.Error("it was written")
					return
				}
				state, _ := out.unwritten(err)
				done <- state
			}()
			want := imprint.MediumTaken
			if closed {
				want = imprint.MediumLeft
			}
			if got := <-done; got != want {
				t.Errorf("%s, in a closed directory %v: %s, want %s", name, closed, got, want)
			}
			if closed {
				os.Chmod(dir, 0o700)
				if _, err := os.Lstat(path); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			}
		}
	}
}
