package repair_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
	"testing"

	"imprint"
	"imprint/internal/repair"
)

// Entries are read as mount(8) reads them, and each way of naming a filesystem finds it.
func TestFstab(t *testing.T) {
	t.Parallel()
	const text = `# /etc/fstab
UUID=5c1b8f2a-0d4e-4f6b-9a57-3e1d2c4b6a80	/ ext4 errors=remount-ro 0 1
	UUID="1D2C-4B6A"  /boot/efi  vfat  umask=0077 0 1
LABEL=with\040space /srv ext4
/dev/disk/by-uuid/5C1B8F2A-0D4E-4F6B-9A57-3E1D2C4B6A80 /a ext4 x
PARTUUID=89abcdef-02 /boot/../usr ext4 x
PARTLABEL=data /c ext4 x
/dev/sda2 /d ext4 x
/dev/nvme0n1p3 /e ext4 x
/dev/mapper/vg-root3 /f ext4 x
/dev/sda /g ext4 x
too few
tmp relative ext4 x
/dev/vdb2 none swap sw
`
	list, err := repair.ParseFstab([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	volumes := []repair.Volume{
		{Number: 1, UUID: "5c1b8f2a-0d4e-4f6b-9a57-3e1d2c4b6a80", PartUUID: "89abcdef-01"},
		{Number: 2, UUID: "1D2C-4B6A", PartUUID: "89abcdef-02"},
		{Number: 3, Label: "with space", PartName: "data"},
	}
	var got []string
	for i := range list {
		_, dir := list[i].Fstab()
		got = append(got, fmt.Sprintf("%s:%d", dir, list[i].Find(volumes)))
	}
	const want = "/:0 /boot/efi:1 /srv:2 /a:0 /usr:1 /c:2 /d:1 /e:2 /f:-1 /g:-1 :1"
	if strings.Join(got, " ") != want {
		t.Errorf("got  %s\nwant %s", strings.Join(got, " "), want)
	}
	if _, err := repair.ParseFstab(bytes.Repeat([]byte("/dev/sda1 / ext4\n"), 1<<17)); imprint.KindOf(err) != imprint.Exhausted {
		t.Errorf("one of 2 MiB: %v", err)
	}
}

func FuzzFstab(f *testing.F) {
	f.Add([]byte("UUID=1D2C-4B6A /boot\\040x vfat umask=0077,subvol=@ 0 1\n"))
	f.Add([]byte("/dev/nvme0n1p3 / ext4\n#\n\\"))
	f.Fuzz(func(t *testing.T, b []byte) {
		list, err := repair.ParseFstab(b)
		if err != nil {
			return
		}
		for i := range list {
			if _, dir := list[i].Fstab(); dir != "" && !strings.HasPrefix(dir, "/") {
				t.Errorf("a directory %q", dir)
			}
			list[i].Find([]repair.Volume{{Number: 3}})
		}
	})
}

// FuzzProbe looks at what may be any filesystem.
func FuzzProbe(f *testing.F) {
	at := func(offset int, magic string) []byte {
		b := make([]byte, 70<<10)
		copy(b[offset:], magic)
		return b
	}
	fat := at(0, "\xeb\x3c\x90mkfs.fat\x00\x02\x04\x04\x00\x02\x00\x02\x00\x00\xf8")
	copy(fat[510:], "\x55\xaa")
	for _, b := range [][]byte{nil, at(0, "XFSB"), at(4086, "SWAPSPACE2"), at(65600, "_BHRfS_M"), at(0, "LUKS\xba\xbe"), fat, at(3, "NTFS    ")} {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		v, err := repair.Probe(bytes.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		if strings.ContainsAny(v.String(), "\x00\x1b\n") {
			t.Errorf("it is called %q", v.String())
		}
	})
}

// efiProgram is a program for a machine, with or without a signature.
func efiProgram(machine uint16, signed bool, text string) string {
	b := make([]byte, 512)
	copy(b, "MZ")
	le := binary.LittleEndian
	le.PutUint32(b[60:], 64)
	copy(b[64:], "PE\x00\x00")
	le.PutUint16(b[68:], machine)
	le.PutUint16(b[84:], 240)
	optional := b[88:]
	le.PutUint16(optional, 0x20b)
	le.PutUint32(optional[108:], 16)
	if signed {
		le.PutUint32(optional[112+8*4:], 512)
		le.PutUint32(optional[112+8*4+4:], 100)
	}
	return string(b) + text
}
