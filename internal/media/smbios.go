package media

import (
	"bytes"
	"encoding/base64"
	"io"
	"strings"

	"imprint"
)

// SMBIOS structure of type 11, OEM strings (DSP0134 section 7.12), in numbers.
const (
	oemStrings = 11
	oemHeader  = 5      // bytes before the strings
	oemHandle  = 0x0e00 // as QEMU's own of this type
	oemCount   = 255    // strings
	// oemSize is how large a structure may be: a table has 65535 bytes where the
	// entry point is that of SMBIOS 2.1, and the firmware's own structures are in it.
	oemSize = 60 << 10
)

// credentialString is what systemd looks for in front of a credential in base64
// (systemd.system-credentials(7)).
const credentialString = "io.systemd.credential.binary:"

func firmwareRules() rules {
	return rules{format: "a firmware string", forbidden: "/=", units: 255, bytes: 255}
}

// SMBIOS writes v's files as systemd credentials in one structure of type 11, for
// QEMU's "-smbios file=". Names have no directories. The label and the time play no part. It
// fails as [ISO] does.
func SMBIOS(w io.Writer, v *Volume) error {
	r := firmwareRules()
	b := []byte{oemStrings, oemHeader, oemHandle & 0xff, oemHandle >> 8, 0}
	for _, name := range sortedPaths(v.Files) {
		if name == "" {
			return refuse(name, "it has no name")
		}
		if err := r.check(name, name); err != nil {
			return err
		}
		b = append(b, credentialString+name+"="+base64.StdEncoding.EncodeToString(v.Files[name])...)
		b = append(b, 0)
	}
	if n := len(v.Files); n == 0 || n > oemCount {
		return imprint.Errorf(imprint.Exhausted, "write", r.format, "%d strings; there may be 1 to %d", n, oemCount)
	}
	b[4] = byte(len(v.Files))
	b = append(b, 0)
	if len(b) > oemSize {
		return tooLarge("SMBIOS strings", int64(len(b)), oemSize)
	}
	m := image{size: int64(len(b)), pieces: []piece{{0, b}}}
	return m.writeTo(w)
}

// smbios reads a structure of OEM strings, of which each is a credential; nil if
// it is none.
func (in *reader) smbios() (*Contents, error) {
	if in.size < oemHeader+2 || in.size > oemSize {
		return nil, nil
	}
	b, err := in.bytes(0, in.size)
	if err != nil {
		return nil, err
	}
	text, whole := bytes.CutSuffix(b[oemHeader:], []byte{0, 0})
	list := strings.Split(string(text), "\x00")
	if b[0] != oemStrings || b[1] != oemHeader || !whole || len(list) != int(b[4]) {
		return nil, nil
	}
	for _, s := range list {
		rest, ok := strings.CutPrefix(s, credentialString)
		name, value, more := strings.Cut(rest, "=")
		data, err := base64.StdEncoding.DecodeString(value)
		if !ok || !more || err != nil {
			return nil, damaged("the string %.40q is no credential", s)
		}
		if err := in.add(name, data); err != nil {
			return nil, err
		}
	}
	return &Contents{Format: "smbios", Names: "credentials"}, nil
}
