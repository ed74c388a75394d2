package media_test

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"imprint"
	"imprint/internal/dialect"
	"imprint/internal/media"
	"imprint/test/need"
)

// What describes an ISO as a whole is in order: both extensions are announced, and
// the path table, which old readers use, leads to each directory.
func TestISODescribesItself(t *testing.T) {
	t.Parallel()
	isoinfo := need.Program(t, "isoinfo", "genisoimage")
	image := filepath.Join(t.TempDir(), "image")
	f, err := os.Create(image)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := media.ISO(f, &media.Volume{Label: "cidata", Time: at, Files: map[string][]byte{"a/b/c": nil, "d/e": nil}}); err != nil {
		t.Fatal(err)
	}
	out := run(t, isoinfo, "-d", "-i", image)
	for _, want := range []string{"Volume id: cidata\n", "Joliet with UCS level 3 found", "Rock Ridge signatures version 1 found"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in %s", want, out)
		}
	}
	var table []string
	for line := range strings.Lines(run(t, isoinfo, "-p", "-i", image)) {
		if fields := strings.Fields(line); len(fields) >= 3 && strings.HasSuffix(fields[0], ":") {
			table = append(table, fields[0]+" "+fields[1]+" "+strings.Join(fields[3:], " "))
		}
	}
	if want := []string{"1: 1 ", "2: 1 A", "3: 1 D", "4: 2 B"}; !slices.Equal(table, want) {
		t.Errorf("path table %q, want %q", table, want)
	}
}

// Each carrier is what its name says, and says truly how much it holds.
func TestCarriers(t *testing.T) {
	t.Parallel()
	for _, c := range media.Carriers() {
		if imprint.MayTravel(imprint.Private, c.Readers) {
			t.Errorf("%s may hold private values, and administrators of the platform read it", c.Name)
		}
		got, err := media.CarrierOf(c.Name)
		if err != nil || got.Name != c.Name {
			t.Errorf("%s: %v", c.Name, err)
		}
		v := &media.Volume{Label: "cidata", Time: at, Files: map[string][]byte{"f": make([]byte, c.Capacity)}}
		if c.Kind == media.Added {
			if err := c.Write(io.Discard, v, 0); imprint.KindOf(err) != imprint.Invalid {
				t.Errorf("%s was written as a whole: %v", c.Name, err)
			}
			continue
		}
		if c.Kind == media.Directory {
			testDirectory(t, c)
			continue
		}
		switch c.Form {
		case dialect.Firmware:
			v.Files = map[string][]byte{"org.imprint/f": make([]byte, c.Capacity*3/4-64)}
		case dialect.System:
			v.Files = map[string][]byte{dialect.SystemUUID: []byte(systemID), dialect.SystemSerial: bytes.Repeat([]byte("s"), int(c.Capacity)-len(systemID))}
		}
		if err := c.Write(io.Discard, v, 0); err != nil {
			t.Errorf("%s does not hold %d bytes: %v", c.Name, c.Capacity, err)
		}
		if c.Form != dialect.Volume && c.Form != dialect.Initrd { // see their own tests
			continue
		}
		v.Files["f"] = make([]byte, c.Capacity+1)
		if err := c.Write(io.Discard, v, 0); imprint.KindOf(err) != imprint.Exhausted {
			t.Errorf("%s and one byte more than it holds: %v", c.Name, err)
		}
		if c.Name[:3] != "fat" {
			if err := c.Write(io.Discard, configDrive(), 32<<20); imprint.KindOf(err) != imprint.Invalid {
				t.Errorf("%s of 32 MiB: %v", c.Name, err)
			}
		}
	}
	if _, err := media.CarrierOf("tape"); imprint.KindOf(err) != imprint.Invalid {
		t.Errorf("an unknown carrier: %v", err)
	}
}

func TestSMBIOS(t *testing.T) {
	t.Parallel()
	v := &media.Volume{Files: map[string][]byte{
		"io.systemd.credentials/system.hostname": []byte("web-1"), "io.systemd.credentials/tmpfiles.extra": []byte("d /x\n\x00"),
		"io.systemd.credentials/empty": nil, "org.imprint/payload": []byte("{}"),
	}}
	var b bytes.Buffer
	if err := media.SMBIOS(&b, v); err != nil {
		t.Fatal(err)
	}
	want := "\x0b\x05\x00\x0e\x04" + "io.systemd.credential.binary:empty=\x00" + "io.systemd.credential.binary:system.hostname=d2ViLTE=\x00" +
		"io.systemd.credential.binary:tmpfiles.extra=ZCAveAoA\x00org.imprint:payload=e30=\x00\x00"
	if b.String() != want {
		t.Errorf("wrote %q", b.String())
	}
	c, err := media.Inspect(bytes.NewReader(b.Bytes()), int64(b.Len()))
	if err != nil || c.Format != "smbios" {
		t.Fatalf("%+v, %v", c, err)
	}
	same(t, "Inspect", c.Files, v.Files)

	many := map[string][]byte{}
	for i := range 256 {
		many[fmt.Sprint("org.imprint/", i)] = nil
	}
	for name, c := range map[string]struct {
		files map[string][]byte
		kind  imprint.Kind
		says  string
	}{
		"nobody's":          {map[string][]byte{"a/b": nil}, imprint.Invalid, "neither imprint's nor a credential"},
		"without a name":    {map[string][]byte{"org.imprint/": nil}, imprint.Invalid, "neither imprint's nor a credential"},
		"without directory": {map[string][]byte{"payload": nil}, imprint.Invalid, "neither imprint's nor a credential"},
		"directory":         {map[string][]byte{"org.imprint/a/b": nil}, imprint.Invalid, "the character '/'"},
		"equal sign":        {map[string][]byte{"org.imprint/a=b": nil}, imprint.Invalid, "the character '='"},
		"many":              {many, imprint.Exhausted, "256 strings"},
		"none":              {nil, imprint.Exhausted, "0 strings"},
		"large":             {map[string][]byte{"org.imprint/a": make([]byte, 50000)}, imprint.Exhausted, "too many"},
	} {
		var out bytes.Buffer
		if err := media.SMBIOS(&out, &media.Volume{Files: c.files}); imprint.KindOf(err) != c.kind || err == nil || !strings.Contains(err.Error(), c.says) || out.Len() > 0 {
			t.Errorf("%s: %v, and %d bytes", name, err, out.Len())
		}
	}
}

// What the benchmarks in test/bench measure beside other programs, without the
// rendering and the making of a file.
func BenchmarkWrite(b *testing.B) {
	f, err := os.Create(filepath.Join(b.TempDir(), "image"))
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	v := configDrive()
	for name, write := range map[string]func(io.Writer, *media.Volume) error{"ISO": media.ISO, "Floppy": media.Floppy} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := write(f, v); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
