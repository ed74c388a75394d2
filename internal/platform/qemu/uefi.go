package qemu

import (
	"os"

	"imprint"
)

// UEFI returns the path of UEFI firmware for a [Machine], as the packages of
// distributions have it. It fails with kind [imprint.NotFound].
func UEFI() (string, error) {
	places := []string{"/usr/share/ovmf/OVMF.fd", "/usr/share/qemu/OVMF.fd", "/usr/share/edk2/ovmf/OVMF.fd", "/usr/share/edk2/x64/OVMF.4m.fd"}
	for _, path := range places {
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() {
			return path, nil
		}
	}
	return "", imprint.Errorf(imprint.NotFound, "find", "UEFI firmware", "this machine has none where distributions put it").
		WithHint("apt-get install ovmf, or name a file with --firmware")
}
