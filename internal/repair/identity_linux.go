package repair

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"imprint"
	"imprint/internal/disk"
)

// renewal is which identifiers become which, old to new, in the form that fstab has.
// It is kept in a file on the root filesystem from before the first one changes until
// after the last reference has: whoever is interrupted between finishes with the same.
type renewal map[string]string

const renewalFile = ".imprint-new-identity"

// form is an identifier's, with 0 for each digit: a UUID's, FAT's serial number, a boot
// record's signature and a partition of that. One becomes another of its form.
func form(id string) string {
	f := strings.Map(func(r rune) rune {
		if r >= '0' && r <= '9' || r >= 'a' && r <= 'f' || r >= 'A' && r <= 'F' {
			return '0'
		}
		return r
	}, id)
	switch f {
	case "00000000-0000-0000-0000-000000000000", "0000-0000", "00000000", "00000000-00":
		return f
	}
	return ""
}

// renewal makes identifiers for a disk and what it holds, or reads those of a
// renewal that was interrupted.
func (s *System) renewal() (renewal, error) {
	if b, err := s.tree.read(renewalFile); err == nil {
		var r renewal
		if err := json.Unmarshal(b, &r); err != nil {
			return nil, imprint.Errorf(imprint.Invalid, "read", "/"+renewalFile, "%w", err).WithHint("if it is not of an interrupted imprint fix, remove it")
		}
		for from, to := range r {
			if form(from) == "" || form(from) != form(to) {
				return nil, imprint.Errorf(imprint.Invalid, "read", "/"+renewalFile, "%q and %q are no identifiers", printable(from), printable(to))
			}
		}
		return r, nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	r := s.newRenewal()
	b, err := json.MarshalIndent(r, "", "\t")
	if err != nil {
		return nil, err
	}
	return r, s.tree.write(renewalFile, append(b, '\n'), 0o600)
}

func (s *System) newRenewal() renewal {
	r := renewal{}
	if t := s.table; t != nil && t.Scheme == disk.MBR {
		if t.ID() != "00000000" { // nobody refers to that
			id := hex.EncodeToString(random(4))
			r[t.ID()] = id
			for _, p := range t.Partitions {
				r[t.PartUUID(p)] = fmt.Sprintf("%s-%02x", id, p.Number)
			}
		}
	} else if t != nil {
		r[t.ID()] = newUUID()
		for _, p := range t.Partitions {
			r[t.PartUUID(p)] = newUUID()
		}
	}
	for i := range s.volumes {
		switch v := &s.volumes[i]; v.Type {
		case Ext4, XFS, Btrfs, Swap:
			r[v.UUID] = newUUID()
		case FAT:
			b := random(4)
			r[v.UUID] = fmt.Sprintf("%04X-%04X", binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:]))
		}
	}
	const nobody = "00000000-0000-0000-0000-000000000000"
	delete(r, nobody)
	return r
}

// random returns n bytes that are not all 0.
func random(n int) []byte {
	b := make([]byte, n)
	rand.Read(b) // never fails
	b[0] |= 1
	return b
}

// newUUID makes a UUID of version 4.
func newUUID() string {
	b := random(16)
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return uuid(b)
}

// renew gives what is not mounted its new identifiers. Those that have them already
// are left alone.
func (r renewal) renew(ctx context.Context, env Env, path string, volumes []Volume) error {
	for i := range volumes {
		v := &volumes[i]
		to, ok := r[v.UUID]
		if !ok || v.Type == "" || v.Type == NTFS {
			continue
		}
		if err := v.renew(ctx, env, to); err != nil {
			return err
		}
		f, err := os.Open(v.Device)
		if err != nil {
			return err
		}
		now, err := probe(f)
		f.Close()
		if err != nil || now.UUID != to {
			return imprint.Errorf(imprint.Internal, "renew", v.String(), "its UUID is %s, and not %s", now.UUID, to)
		}
	}
	if len(volumes) == 1 && volumes[0].Number == 0 {
		return nil // no partitions
	}
	d, err := disk.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return disk.Renew(d, r)
}

// renew gives a filesystem or swap space another UUID.
func (v *Volume) renew(ctx context.Context, env Env, to string) error {
	var err error
	switch v.Type {
	case Ext4:
		if err := v.check(ctx, env, true); err != nil { // tune2fs wants it
			return err
		}
		err = run(ctx, env, "tune2fs", "-U", to, v.Device)
	case XFS:
		if err := v.settle(env); err != nil {
			return err
		}
		err = run(ctx, env, "xfs_db", "-x", "-p", "xfs_admin", "-c", "uuid "+to, v.Device)
	case Btrfs:
		if err := v.settle(env); err != nil {
			return err
		}
		err = run(ctx, env, "btrfstune", "-f", "-M", to, v.Device)
	case Swap:
		return v.overwrite(unhex(to), swapUUID)
	case FAT:
		return v.renewFAT(to)
	}
	if err != nil {
		return imprint.Errorf(imprint.Invalid, "renew", v.String(), "%w", err)
	}
	return nil
}

// settle mounts a filesystem so that it replays its log, as its tools want it.
func (v *Volume) settle(env Env) error {
	return v.mounted(env, "", false, func(string) error { return nil })
}

// renewFAT writes the serial number, which only the boot sector and its copy have.
func (v *Volume) renewFAT(to string) error {
	f, err := os.Open(v.Device)
	if err != nil {
		return err
	}
	defer f.Close()
	b := make([]byte, 512)
	if _, err := f.ReadAt(b, 0); err != nil {
		return unreadable(v.String(), err)
	}
	n := unhex(to)
	slices.Reverse(n)
	at := int64(fatSerial(b))
	places := []int64{at}
	if at == 67 { // FAT32 says where the copy is, in sectors
		if copy := int64(binary.LittleEndian.Uint16(b[50:])); copy != 0 && copy != 0xffff {
			places = append(places, copy*int64(binary.LittleEndian.Uint16(b[11:]))+at)
		}
	}
	return v.overwrite(n, places...)
}

// overwrite writes b at each of the places of a volume that nobody uses.
func (v *Volume) overwrite(b []byte, places ...int64) error {
	f, err := os.OpenFile(v.Device, os.O_RDWR|os.O_EXCL, 0)
	if err != nil {
		return imprint.Errorf(imprint.Unavailable, "open", v.String(), "%w", err)
	}
	defer f.Close()
	for _, at := range places {
		if _, err := f.WriteAt(b, at); err != nil {
			return imprint.Errorf(imprint.Unavailable, "write", v.String(), "%w", err)
		}
	}
	return f.Sync()
}

// unhex is what a text of hexadecimal digits and dashes says.
func unhex(s string) []byte {
	b, _ := hex.DecodeString(strings.ReplaceAll(s, "-", "")) // it was matched
	return b
}

// references are where a system refers to its filesystems, as patterns of [path.Match]
// below the root filesystem or the EFI system partition.
func references() []string {
	return []string{
		"etc/fstab", "etc/crypttab", "etc/default/grub", "etc/default/grub.d/*", "etc/kernel/cmdline", "etc/cmdline.d/*",
		"etc/initramfs-tools/conf.d/*", "etc/dracut.conf", "etc/dracut.conf.d/*",
		"boot/grub/grub.cfg", "boot/grub/custom.cfg", "boot/grub/grubenv", "boot/grub2/grub.cfg", "boot/grub2/grubenv",
		"boot/loader/entries/*", "boot/loader/*.conf", "boot/extlinux/*.conf", "boot/syslinux/*.cfg", "boot/*.txt",
		"loader/entries/*", "loader/*.conf", "EFI/*/grub.cfg", "EFI/*/grubenv", "EFI/*/*.efi", "EFI/*/*.EFI",
	}
}

// maxReferences is how many files may match.
const maxReferences = 4096

// refer lets what refers to an old identifier refer to the new one, and returns the
// paths of the files that changed.
func (t *tree) refer(r renewal) ([]string, error) {
	var changed []string
	names := t.match(references())
	if len(names) > maxReferences {
		return nil, imprint.Errorf(imprint.Exhausted, "renew", "the system", "it has %d files that may refer to its filesystems; %d are looked at", len(names), maxReferences)
	}
	for _, name := range names {
		b, err := t.read(name)
		if err != nil {
			if t.has(name) && imprint.KindOf(err) != imprint.Exhausted {
				continue // a directory, a link to nowhere
			}
			return changed, err
		}
		if strings.EqualFold(path.Ext(name), ".efi") && signed(b) {
			continue // it would not be right any more, and cannot have been made on this system
		}
		did, err := t.patch(name, b, r)
		if err != nil {
			return changed, imprint.Errorf(imprint.Unavailable, "write", "/"+name, "%w", err)
		}
		if did {
			changed = append(changed, name)
		}
	}
	return changed, nil
}

// match returns the paths that match patterns, in which only the last elements have
// wildcards.
func (t *tree) match(patterns []string) []string {
	var names []string
	var walk func(dir string, rest []string)
	walk = func(dir string, rest []string) {
		if len(names) > maxReferences {
			return
		}
		if len(rest) == 0 {
			names = append(names, dir)
			return
		}
		if !strings.Contains(rest[0], "*") {
			if at := path.Join(dir, rest[0]); t.has(at) {
				walk(at, rest[1:])
			}
			return
		}
		entries := t.readDir(dir)
		slices.Sort(entries)
		for _, name := range entries {
			if ok, _ := path.Match(rest[0], name); ok {
				walk(path.Join(dir, name), rest[1:])
			}
		}
	}
	for _, p := range patterns {
		walk("", strings.Split(p, "/"))
	}
	return names
}

// unique are what no two machines may have in common: what is removed, as patterns.
func unique() []string {
	return []string{
		"etc/ssh/ssh_host_*", "var/lib/dbus/machine-id", "var/lib/systemd/random-seed", "var/lib/systemd/credential.secret",
		"var/lib/random-seed", "var/lib/urandom/random-seed", "var/lib/misc/random-seed", "loader/random-seed", "boot/loader/random-seed",
		"var/lib/dhcp/*.leases", "var/lib/dhclient/*.lease*", "var/lib/NetworkManager/secret_key", "var/lib/NetworkManager/*.lease",
		"etc/udev/rules.d/70-persistent-net.rules", "etc/nvme/hostid", "etc/nvme/hostnqn",
		"etc/imprint/identity.json", "etc/imprint/key.pem", "etc/imprint/cert.pem", "etc/imprint/ca.pem", "etc/imprint/old", // imprint-agent's
	}
}

// forget removes what no two machines may have in common, and returns the paths. The
// machine ID becomes empty, by which systemd knows that it has to make one.
func (t *tree) forget() ([]string, error) {
	var gone []string
	for _, name := range t.match(unique()) {
		did, err := t.remove(name)
		if err != nil {
			return gone, imprint.Errorf(imprint.Unavailable, "remove", "/"+name, "%w", err)
		}
		if did {
			gone = append(gone, name)
		}
	}
	const machineID = "etc/machine-id"
	if !t.has(machineID) {
		return gone, nil
	}
	if b, err := t.read(machineID); err == nil && len(strings.TrimSpace(string(b))) == 0 {
		return gone, nil
	}
	if err := t.write(machineID, nil, 0o444); err != nil {
		return gone, imprint.Errorf(imprint.Unavailable, "write", "/"+machineID, "%w", err)
	}
	return append(gone, machineID), nil
}
