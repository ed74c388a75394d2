//go:build vm

package vm_test

import (
	"context"
	"os/exec"
	"path/filepath"
	"testing"

	"imprint/demo/guest"
	"imprint/test/need"
)

// debianImage returns a disk image of Debian 12 with its own cloud-init. It takes
// a minute or more to make the first.
func debianImage(t *testing.T, k guest.Kernel) string {
	t.Helper()
	return madeImage(t, k, guest.Debian)
}

// madeImage returns the disk image that make makes.
func madeImage(t *testing.T, k guest.Kernel, make func(ctx context.Context, cache string, k guest.Kernel) (string, error)) string {
	t.Helper()
	need.Root(t)
	need.Program(t, "mmdebstrap", "mmdebstrap")
	need.Program(t, "mke2fs", "e2fsprogs")
	image, err := make(t.Context(), cache, k)
	if err != nil {
		t.Fatal(err)
	}
	return image
}

// switchRoot builds an initramfs that hands over to the system on the first disk,
// with the named kernel modules beside those of disks.
func switchRoot(t *testing.T, modules ...string) guest.Image {
	t.Helper()
	image, err := guest.Build(t.Context(), guest.Config{
		Cache: cache, Out: filepath.Join(t.TempDir(), "initrd.cpio"), Script: guest.SwitchRoot, Modules: modules,
	})
	if err != nil {
		t.Fatal(err)
	}
	return image
}

func command(t *testing.T, name string, arg ...string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), name, arg...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", name, err, out)
	}
}
