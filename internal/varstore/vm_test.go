//go:build vm

package varstore_test

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"imprint/internal/varstore"
	"imprint/test/need"
)

// Real firmware starts the loader that a boot entry names, from a disk on which it
// would find none by itself.
func TestFirmwareBootsTheEntry(t *testing.T) {
	const grub, code = "/usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed", "/usr/share/OVMF/OVMF_CODE_4M.fd"
	need.File(t, grub, "grub-efi-amd64-signed")
	need.File(t, code, "ovmf")
	need.Program(t, "mcopy", "mtools")
	need.Program(t, "mformat", "mtools")
	need.Program(t, "qemu-system-x86_64", "qemu-system-x86")
	dir := t.TempDir()
	disk, config := filepath.Join(dir, "disk.raw"), filepath.Join(dir, "grub.cfg")
	if err := os.WriteFile(config, []byte("echo THE LOADER RUNS\nhalt\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	command := func(stdin, name string, args ...string) string {
		t.Helper()
		cmd := exec.Command(need.Program(t, name, "fdisk"), args...)
		cmd.Stdin = strings.NewReader(stdin)
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%s %v: %v\n%s", name, args, err, out)
		}
		return string(out)
	}
	command("", "truncate", "-s", "64M", disk)
	command("label: gpt\nstart=2048, size=100000, type=uefi\n", "sfdisk", "--quiet", disk)
	volume := disk + "@@1M"
	command("", "mformat", "-i", volume, "-T", "100000", "::")
	command("", "mmd", "-i", volume, "::EFI", "::EFI/debian")
	command("", "mcopy", "-i", volume, grub, "::EFI/debian/grubx64.efi")
	command("", "mcopy", "-i", volume, config, "::EFI/debian/grub.cfg")
	var dump struct {
		PartitionTable struct {
			Partitions []struct {
				Start, Size int64
				UUID        string
			}
		}
	}
	if err := json.Unmarshal([]byte(command("", "sfdisk", "--json", disk)), &dump); err != nil {
		t.Fatal(err)
	}
	part := dump.PartitionTable.Partitions[0]
	for name, entry := range map[string]bool{"with the entry": true, "without": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, err := varstore.Read(vars(t))
			if err != nil {
				t.Fatal(err)
			}
			if entry {
				e := varstore.Entry{Title: "Debian", Partition: 1, PartUUID: part.UUID, Start: part.Start, Sectors: part.Size, Path: `\EFI\debian\grubx64.efi`}
				if _, err := s.Boot(e); err != nil {
					t.Fatal(err)
				}
			}
			b, err := s.Bytes()
			if err != nil {
				t.Fatal(err)
			}
			store := filepath.Join(t.TempDir(), "vars.fd")
			if err := os.WriteFile(store, b, 0o600); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
			defer cancel()
			serial, err := os.Create(filepath.Join(t.TempDir(), "serial"))
			if err != nil {
				t.Fatal(err)
			}
			cmd := exec.CommandContext(ctx, "qemu-system-x86_64", "-accel", "tcg", "-M", "q35", "-m", "256", "-nodefaults", "-no-reboot", "-display", "none", "-serial", "stdio",
				"-drive", "if=pflash,unit=0,format=raw,readonly=on,file="+code, "-drive", "if=pflash,unit=1,format=raw,file="+store,
				"-drive", "id=d,if=none,format=raw,snapshot=on,file="+disk, "-device", "virtio-blk-pci,drive=d")
			cmd.Stdout = serial
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			// Without an entry the firmware shows its shell or menu and stays there.
			says := ""
			for tick := time.NewTicker(100 * time.Millisecond); ctx.Err() == nil; <-tick.C {
				text, _ := os.ReadFile(serial.Name())
				says = string(text)
				if strings.Contains(says, "THE LOADER RUNS") || strings.Contains(says, "Shell>") || strings.Contains(says, "No bootable option") {
					break
				}
			}
			cmd.Process.Kill()
			cmd.Wait()
			serial.Close()
			if strings.Contains(says, "THE LOADER RUNS") != entry {
				t.Errorf("%s the firmware says\n%q", name, says)
			}
			after, err := os.ReadFile(store)
			if err != nil {
				t.Fatal(err)
			}
			if s, err := varstore.Read(after); err != nil || entry && s.Entries()[0] != "Debian" {
				t.Errorf("%s the firmware left %v, %v", name, s.Entries(), err)
			}
		})
	}
}
