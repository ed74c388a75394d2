//go:build linux

package guest

import (
	"bytes"
	"encoding/base64"
	"strings"
	"testing"

	"imprint"
)

// Names of what the kernel shows of a machine's firmware.
const (
	fwCfgRaw = "sys/firmware/qemu_fw_cfg/by_name/opt/org.imprint/payload/raw"
	dmiTable = "sys/firmware/dmi/tables/DMI"
)

// structure is one of an SMBIOS table, with so many bytes before its strings.
func structure(kind, length byte, text ...string) string {
	s := string([]byte{kind, length, 0, 0}) + strings.Repeat("\x01", int(length)-4)
	if len(text) == 0 {
		s += "\x00"
	}
	return s + strings.Join(text, "\x00") + strings.Repeat("\x00", min(len(text), 1)) + "\x00"
}

func TestPayloadInFWCfg(t *testing.T) {
	t.Parallel()
	m := newMachine(t, nil)
	s := fwCfgSource{Layout{m.root}}
	if _, err := s.Try(t.Context()); imprint.KindOf(err) != imprint.NotFound {
		t.Errorf("without any: %v", err)
	}
	m.write(fwCfgRaw, `{"imprint":1}`, 0o400)
	f, err := s.Try(t.Context())
	if err != nil || string(f.payload) != `{"imprint":1}` || f.live != nil {
		t.Errorf("Try = %+v, %v", f, err)
	}
	m.write(fwCfgRaw, strings.Repeat("x", imprint.MaxPayload+1), 0o400)
	if _, err := s.Try(t.Context()); imprint.KindOf(err) != imprint.Invalid {
		t.Errorf("more than a payload: %v", err)
	}
}

func TestPayloadInAnOEMString(t *testing.T) {
	t.Parallel()
	payload := strings.Repeat("p", imprint.MaxPayload)
	text := firmwareString + base64.StdEncoding.EncodeToString([]byte(payload))
	system := structure(1, 27, "QEMU", firmwareString+"bm90IGhlcmU=")
	for name, c := range map[string]struct {
		table string
		want  string
		kind  imprint.Kind
	}{
		"among others":            {structure(0, 24, "SeaBIOS") + system + structure(17, 40) + structure(11, 5, "io.systemd.credential:a=b", text) + structure(127, 4), payload, imprint.KindOf(nil)},
		"in the second structure": {structure(11, 5, "first") + structure(11, 5, text), payload, imprint.KindOf(nil)},
		"no table":                {"", "", imprint.NotFound},
		"in another structure":    {system, "", imprint.NotFound},
		"behind the end":          {structure(127, 4) + structure(11, 5, text), "", imprint.NotFound},
		"inside another string":   {structure(11, 5, "x"+text), "", imprint.NotFound},
		"cut off":                 {structure(11, 5, text)[:900], "", imprint.NotFound},
		"header too short":        {structure(0, 24, "a") + "\x0b\x03\x00\x00" + text + "\x00\x00", "", imprint.NotFound},
		"no base64":               {structure(11, 5, firmwareString+"*"), "", imprint.Invalid},
		"more than a payload":     {structure(11, 5, firmwareString+base64.StdEncoding.EncodeToString(make([]byte, imprint.MaxPayload+1))), "", imprint.Invalid},
		"more than a table":       {strings.Repeat(structure(17, 40), maxSMBIOS/42+1), "", imprint.Invalid},
	} {
		m := newMachine(t, nil)
		if c.table != "" {
			m.write(dmiTable, c.table, 0o400)
		}
		f, err := smbiosSource{Layout{m.root}}.Try(t.Context())
		if imprint.KindOf(err) != c.kind || err == nil && (string(f.payload) != c.want || f.live != nil) {
			t.Errorf("%s: %+v, %v", name, f, err)
		}
	}
}

// What the firmware has comes after volumes, and before a file and the network.
func TestFirmwareInTheOrderOfSources(t *testing.T) {
	t.Parallel()
	var order []string
	for _, s := range New(Options{}, nil).sources {
		order = append(order, strings.Fields(s.String())[0])
	}
	if got := strings.Join(order, " "); !strings.Contains(got, "volume fw_cfg SMBIOS file") {
		t.Errorf("the sources are %s", got)
	}
}

// FuzzOEMString: whatever the table is, the string is a part of it that stands
// behind the prefix.
func FuzzOEMString(f *testing.F) {
	f.Add([]byte(structure(1, 27, "QEMU") + structure(11, 5, "a", "k=v") + structure(127, 4)))
	f.Add([]byte(structure(11, 5)))
	f.Add([]byte("\x0b\xff\x00\x00k=v\x00\x00"))
	f.Fuzz(func(t *testing.T, table []byte) {
		v := oemString(table, "k=")
		if v != nil && !bytes.Contains(table, append([]byte("k="), v...)) || bytes.IndexByte(v, 0) >= 0 {
			t.Errorf("found %q", v)
		}
	})
}
