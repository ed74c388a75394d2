package varstore_test

import (
	"bytes"
	"encoding/binary"
	"os"
	"slices"
	"strings"
	"testing"

	"imprint"
	"imprint/internal/varstore"
	"imprint/test/need"
)

// vars is an empty store as it comes with the firmware.
func vars(t testing.TB) []byte {
	t.Helper()
	const path = "/usr/share/OVMF/OVMF_VARS_4M.fd"
	need.File(t, path, "ovmf")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func debian() varstore.Entry {
	return varstore.Entry{Title: "Debian", Partition: 15, PartUUID: "12345678-9abc-4def-8012-3456789abcde", Start: 2048, Sectors: 253952, Path: `\EFI\debian\shimx64.efi`}
}

// A boot entry has the bytes that efibootmgr and firmware write for it.
func TestEntry(t *testing.T) {
	t.Parallel()
	got, err := debian().Encode()
	if err != nil {
		t.Fatal(err)
	}
	ucs2 := func(s string) string { return strings.Join(strings.Split(s, ""), "\x00") + "\x00\x00\x00" }
	want := "\x01\x00\x00\x00" + "\x62\x00" + ucs2("Debian") +
		"\x04\x01\x2a\x00" + "\x0f\x00\x00\x00" + "\x00\x08\x00\x00\x00\x00\x00\x00" + "\x00\xe0\x03\x00\x00\x00\x00\x00" +
		"\x78\x56\x34\x12\xbc\x9a\xef\x4d\x80\x12\x34\x56\x78\x9a\xbc\xde" + "\x02\x02" +
		"\x04\x04\x34\x00" + ucs2(`\EFI\debian\shimx64.efi`) + "\x7f\xff\x04\x00"
	if string(got) != want {
		t.Errorf("got\n%q\nwant\n%q", got, want)
	}
	e := debian()
	e.PartUUID = "89abcdef-0f"
	got, err = e.Encode()
	if err != nil || !bytes.Contains(got, []byte("\xef\xcd\xab\x89"+strings.Repeat("\x00", 12)+"\x01\x01\x04\x04")) {
		t.Errorf("of a master boot record: %q, %v", got, err)
	}
	for _, bad := range []varstore.Entry{{}, {Title: "x", Partition: 1, Start: 1, Sectors: 1, PartUUID: "?", Path: `\x`}, {Title: "x", Partition: 1, Start: 1, Sectors: 1, PartUUID: debian().PartUUID, Path: "EFI/x"}} {
		if _, err := bad.Encode(); imprint.KindOf(err) != imprint.Invalid || err == nil {
			t.Errorf("%+v: %v", bad, err)
		}
	}
}

// An entry is put before those that are there, once, and all else in the file stays.
func TestBoot(t *testing.T) {
	t.Parallel()
	before := vars(t)
	s, err := varstore.Read(bytes.Clone(before))
	if err != nil {
		t.Fatal(err)
	}
	// What the firmware wrote itself.
	s.Set(varstore.Global(), "Boot0000", append([]byte{1, 0, 0, 0, 4, 0}, []byte("U\x00I\x00\x00\x00\x7f\xff\x04\x00")...))
	s.Set(varstore.Global(), "BootOrder", []byte{0, 0})
	s.Set([16]byte{1}, "Lang", []byte("eng\x00"))
	for range 2 {
		if name, err := s.Boot(debian()); err != nil || name != "Boot0001" {
			t.Errorf("%s, %v", name, err)
		}
	}
	b, err := s.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	if len(b) != len(before) || !bytes.Equal(b[0x40000:], before[0x40000:]) || !bytes.Equal(b[:100], before[:100]) {
		t.Error("something beside the variables was changed")
	}
	again, err := varstore.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	if got := again.Entries(); !slices.Equal(got, []string{"Debian", "UI"}) {
		t.Errorf("the entries are %q", got)
	}
	if string(again.Get([16]byte{1}, "Lang")) != "eng\x00" || !bytes.Equal(again.Get(varstore.Global(), "BootOrder"), []byte{1, 0, 0, 0}) {
		t.Errorf("%+v", again.Variables)
	}
}

// A variable that the firmware replaces counts until the new one is there.
func TestReplacedVariables(t *testing.T) {
	t.Parallel()
	s, err := varstore.Read(vars(t))
	if err != nil {
		t.Fatal(err)
	}
	s.Variables = nil
	for _, name := range []string{"A", "A", "B", "C"} {
		s.Variables = append(s.Variables, varstore.Variable{Name: name, Attributes: 7, Data: []byte{byte(len(s.Variables))}})
	}
	b, err := s.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	states := []byte{0x3e, 0x3f, 0x3e, 0x3c}
	at := bytes.Index(b, []byte{0xaa, 0x55, 0x3f})
	for _, state := range states {
		b[at+2] = state
		at += (60 + 4 + 1 + 3) &^ 3
	}
	s, err = varstore.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	if string(s.Get([16]byte{}, "A")) != "\x01" || string(s.Get([16]byte{}, "B")) != "\x02" || s.Get([16]byte{}, "C") != nil {
		t.Errorf("%+v", s.Variables)
	}
}

// What is no store, or one that is damaged, is refused.
func TestNoStore(t *testing.T) {
	t.Parallel()
	good := vars(t)
	s, err := varstore.Read(bytes.Clone(good))
	if err != nil {
		t.Fatal(err)
	}
	s.Set(varstore.Global(), "X", []byte("x"))
	if good, err = s.Bytes(); err != nil {
		t.Fatal(err)
	}
	change := func(at int, with string) []byte {
		b := bytes.Clone(good)
		copy(b[at:], with)
		return b
	}
	var size [4]byte
	binary.LittleEndian.PutUint32(size[:], uint32(len(good)))
	for name, b := range map[string][]byte{
		"nothing": nil, "short": good[:90], "zeros": make([]byte, 1<<20), "qcow2": change(0, "QFI\xfb"), "cut off": good[:len(good)/4],
		"another volume": change(16, "x"), "header": change(50, "xx"), "format": change(72+20, "x"), "size": change(72+16, string(size[:])), "variable": change(100, "xx"), "data": change(100+40, "\xff\xff\xff\x7f"),
	} {
		if _, err := varstore.Read(b); imprint.KindOf(err) != imprint.Invalid || err == nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for range 100 {
		s.Set(varstore.Global(), strings.Repeat("y", len(s.Variables)+1), make([]byte, 4096))
	}
	if _, err := s.Bytes(); imprint.KindOf(err) != imprint.Exhausted {
		t.Errorf("too much: %v", err)
	}
}

// Whatever a file holds, reading it ends, and what was read is written as it was.
func FuzzRead(f *testing.F) {
	store := make([]byte, 4096) // a small one of the same form
	copy(store[16:], "\x8d\x2b\xf1\xff\x96\x76\x8b\x4c\xa9\x85\x27\x47\x07\x5b\x4f\x50")
	copy(store[40:], "_FVH\x00\x00\x00\x00\x48\x00")
	copy(store[72:], "\x78\x2c\xf3\xaa\x7b\x94\x9a\x43\xa1\x80\x2e\x14\x4e\xc3\x77\x92\xb8\x0f\x00\x00\x5a\xfe")
	for i := 100; i < len(store); i++ {
		store[i] = 0xff
	}
	sum := uint16(0)
	for i := 0; i < 72; i += 2 {
		sum += binary.LittleEndian.Uint16(store[i:])
	}
	binary.LittleEndian.PutUint16(store[50:], -sum)
	s, err := varstore.Read(bytes.Clone(store))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(store)
	s.Boot(debian())
	b, err := s.Bytes()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := varstore.Read(b)
		if err != nil {
			return
		}
		s.Entries()
		out, err := s.Bytes()
		if err != nil {
			return
		}
		again, err := varstore.Read(out)
		if err != nil || len(again.Variables) != len(s.Variables) {
			t.Fatalf("%d variables became %d, %v", len(s.Variables), len(again.Variables), err)
		}
	})
}
