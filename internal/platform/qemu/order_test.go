package qemu

import (
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"imprint"
	"imprint/test/need"
)

// A boot sector writes a letter to the first serial port, and stops.
func bootSector(t *testing.T, letter byte, size int) string {
	t.Helper()
	sector := make([]byte, size)
	copy(sector, []byte{
		0xfa,             // cli
		0xba, 0xf8, 0x03, // mov dx, 0x3f8
		0xb0, letter, // mov al, letter
		0xee,       // out dx, al
		0xf4,       // hlt
		0xeb, 0xfd, // jmp to hlt
	})
	sector[510], sector[511] = 0x55, 0xaa
	path := filepath.Join(t.TempDir(), string(letter))
	if err := os.WriteFile(path, sector, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// Real firmware boots from what the order says, whatever the machine has beside it.
func TestFirmwareBootsInOrder(t *testing.T) {
	t.Parallel()
	need.Program(t, Program, "qemu-system-x86")
	const floppySize = 1440 << 10
	disk, floppy, medium := bootSector(t, 'D', 1<<20), bootSector(t, 'F', floppySize), bootSector(t, 'M', 1<<20)
	for name, test := range map[string]struct {
		machine Machine
		want    byte
	}{
		"disk first":   {Machine{Disks: []Disk{{Path: disk}}, Drives: []Medium{{FloppyDrive, floppy}}, BootOrder: []imprint.BootDevice{imprint.BootDisk, imprint.BootFloppy}}, 'D'},
		"floppy first": {Machine{Disks: []Disk{{Path: disk}}, Drives: []Medium{{FloppyDrive, floppy}}, BootOrder: []imprint.BootDevice{imprint.BootFloppy, imprint.BootDisk}}, 'F'},
		"medium alone": {Machine{Type: PC, Drives: []Medium{{DiskDrive, medium}}, BootOrder: []imprint.BootDevice{imprint.BootCD, imprint.BootDisk}}, 'M'},
		"no order":     {Machine{Disks: []Disk{{Path: disk}}}, 'D'},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test.machine.Console = Console{Kind: ConsoleStdio}
			said := &firstByte{said: make(chan byte, 1)}
			p, err := test.machine.Start(t.Context(), Run{Timeout: time.Minute, Stdout: said})
			if err != nil {
				t.Fatal(err)
			}
			defer p.Wait()
			defer p.Kill()
			select {
			case got := <-said.said:
				if got != test.want {
					t.Errorf("it booted from %q; want %q", got, test.want)
				}
			case <-p.Done():
				_, err := p.Wait()
				t.Errorf("it ended and booted nothing: %v", err)
			}
		})
	}
}

// firstByte tells the first capital letter that is written.
type firstByte struct {
	once sync.Once
	said chan byte
}

func (f *firstByte) Write(p []byte) (int, error) {
	for _, b := range p {
		if b == 'D' || b == 'F' || b == 'M' {
			f.once.Do(func() { f.said <- b })
		}
	}
	return len(p), nil
}
