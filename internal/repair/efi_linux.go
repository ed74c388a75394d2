package repair

import (
	"encoding/binary"
	"path"
	"slices"
	"strings"

	"imprint"
	"imprint/internal/job"
)

// machine tells what an EFI program runs on, as the name of its fallback has it, and
// "" if b is no EFI program (PE/COFF specification, sections 2 and 3).
func machine(b []byte) string {
	header, _ := peHeader(b)
	if header == nil {
		return ""
	}
	switch binary.LittleEndian.Uint16(header[4:]) {
	case 0x8664:
		return "X64"
	case 0xaa64:
		return "AA64"
	case 0x14c:
		return "IA32"
	case 0x5064:
		return "RISCV64"
	}
	return ""
}

// signed reports whether an EFI program has a signature, or cannot be understood.
func signed(b []byte) bool {
	_, optional := peHeader(b)
	if optional == nil {
		return true
	}
	directories := 108 // of a header of 64 bits
	if binary.LittleEndian.Uint16(optional) == 0x10b {
		directories = 92
	}
	const certificates = 4 // its index among the directories
	at := directories + 4 + 8*certificates
	if len(optional) < at+8 || binary.LittleEndian.Uint32(optional[directories:]) <= certificates {
		return false
	}
	return binary.LittleEndian.Uint32(optional[at+4:]) != 0
}

// peHeader returns the headers of a program, from "PE" on and the optional one, or nil.
func peHeader(b []byte) (header, optional []byte) {
	if len(b) < 64 || string(b[:2]) != "MZ" {
		return nil, nil
	}
	at := int64(binary.LittleEndian.Uint32(b[60:]))
	if at > int64(len(b))-24 || string(b[at:at+4]) != "PE\x00\x00" {
		return nil, nil
	}
	header = b[at:]
	n := int(binary.LittleEndian.Uint16(header[20:]))
	if n < 2 || len(header) < 24+n {
		return header, nil
	}
	return header, header[24 : 24+n]
}

// loader is a boot loader on an EFI system partition.
type loader struct {
	dir, name string // such as "EFI/debian" and "shimx64.efi"
	arch      string // as [machine] has it
}

func (l loader) path() string { return path.Join(l.dir, l.name) }

// fallback is where firmware without boot entries looks for a loader (UEFI 2.10, section 3.5.1.1).
func (l loader) fallback() string { return "EFI/BOOT/BOOT" + l.arch + ".EFI" }

// loaders finds the boot loaders of an EFI system partition, the best first: one that
// Secure Boot accepts before what it loads, and a Linux's before Windows'.
func (t *tree) loaders() []loader {
	ranks := []string{"shimx64.efi", "shimaa64.efi", "shim.efi", "systemd-bootx64.efi", "systemd-bootaa64.efi", "grubx64.efi", "grubaa64.efi", "refind_x64.efi", "bootmgfw.efi"}
	var found []loader
	for _, name := range t.match([]string{"EFI/*/*.efi", "EFI/*/*.EFI", "EFI/Microsoft/Boot/bootmgfw.efi"}) {
		l := loader{dir: path.Dir(name), name: path.Base(name)}
		if strings.EqualFold(path.Base(l.dir), "BOOT") && path.Dir(l.dir) == "EFI" || !slices.Contains(ranks, strings.ToLower(l.name)) {
			continue
		}
		b, err := t.read(name)
		if err != nil {
			continue
		}
		if l.arch = machine(b); l.arch != "" && !slices.Contains(found, l) {
			found = append(found, l)
		}
	}
	rank := func(l loader) int { return slices.Index(ranks, strings.ToLower(l.name)) }
	slices.SortStableFunc(found, func(a, b loader) int { return rank(a) - rank(b) })
	return found
}

// fallback puts the best loader of an EFI system partition where firmware without boot
// entries looks for one, and returns the names of the files that it wrote, or would. It
// fails with kind [imprint.NotFound] if there is no loader.
func (t *tree) fallback(dryRun bool) ([]string, error) {
	all := t.loaders()
	if len(all) == 0 {
		if t.has("EFI/BOOT/BOOTX64.EFI") || t.has("EFI/BOOT/BOOTAA64.EFI") {
			return nil, nil // nothing better is there
		}
		return nil, imprint.Errorf(imprint.NotFound, "place", "EFI/BOOT", "the EFI system partition has no boot loader").
			WithHint("install one into the image: apt-get install grub-efi-amd64-signed shim-signed, or bootctl install")
	}
	best := all[0]
	files := map[string]string{best.fallback(): best.path()} // to, from
	// Shim loads what is beside it. GRUB finds its files by the directory that it was
	// built with, or by a grub.cfg that is beside it, which leads there.
	for _, name := range t.readDir(best.dir) {
		switch lower := strings.ToLower(name); {
		case lower == "grub.cfg", strings.HasPrefix(strings.ToLower(best.name), "shim") && (strings.HasPrefix(lower, "grub") || strings.HasPrefix(lower, "mm")) && strings.HasSuffix(lower, ".efi"):
			files["EFI/BOOT/"+lower] = path.Join(best.dir, name)
		}
	}
	// The loader itself goes last: until then firmware has what it had.
	order := slices.SortedFunc(keys(files), func(a, b string) int {
		if (a == best.fallback()) != (b == best.fallback()) {
			if a == best.fallback() {
				return 1
			}
			return -1
		}
		return strings.Compare(a, b)
	})
	var wrote []string
	for _, to := range order {
		b, err := t.read(files[to])
		if err != nil {
			return wrote, err
		}
		if now, err := t.read(to); err == nil && string(now) == string(b) {
			continue
		}
		if !dryRun {
			if err := t.write(to, b, 0o755); err != nil {
				return wrote, imprint.Errorf(imprint.Unavailable, "write", to, "%w", err)
			}
		}
		wrote = append(wrote, to)
	}
	return wrote, nil
}

// bootEntry is what a boot entry of the firmware has to name.
func (s *System) bootEntry(t *tree, esp *Volume) *job.Loader {
	name := ""
	if all := t.loaders(); len(all) > 0 {
		name = all[0].path()
	} else if fallback := "EFI/BOOT/BOOTX64.EFI"; t.has(fallback) {
		name = fallback
	}
	if name == "" || s.table == nil {
		return nil
	}
	for _, p := range s.table.Partitions {
		if p.Number == esp.Number {
			return &job.Loader{
				Title: s.Name, Partition: p.Number, PartUUID: s.table.PartUUID(p), Start: p.Start / s.table.Sector, Sectors: p.Size / s.table.Sector,
				Path: "\\" + strings.ReplaceAll(name, "/", "\\"),
			}
		}
	}
	return nil
}
