package media

import (
	"bytes"
	"encoding/base64"
	"io"
	"io/fs"
	"strings"

	"imprint"
	"imprint/internal/dialect"
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

// ownString is what imprint-agent looks for in front of a file of its own in base64,
// and credentialString what systemd looks for in front of a credential
// (systemd.system-credentials(7)).
const (
	ownString        = "org.imprint:"
	credentialString = "io.systemd.credential.binary:"
)

// oemPrefixes say what the strings begin with whose files are in a directory.
func oemPrefixes() map[string]string {
	return map[string]string{dialect.ImprintNames: ownString, dialect.SystemdNames: credentialString}
}

// firmwareFile divides the path of a file of the firmware's into its directory, which
// says whose it is, and its name. In format path has at most so many bytes.
func firmwareFile(path, format string, most int) (dir, name string, err error) {
	i := strings.IndexByte(path, '/') + 1
	dir, name = path[:i], path[i:]
	if _, known := oemPrefixes()[dir]; !known || !fs.ValidPath(path) {
		return "", "", refuse(path, "it is neither imprint's nor a credential for systemd")
	}
	most -= len(dir)
	return dir, name, rules{format: format, forbidden: `/="`, units: most, bytes: most}.check(path, name)
}

// SMBIOS writes v's files as OEM strings in one structure of type 11, for QEMU's
// "-smbios file=". Their names are those of the form [dialect.Firmware]. The label
// and the time play no part. It fails as [ISO] does.
func SMBIOS(w io.Writer, v *Volume) error {
	list, err := oemStringsOf(v)
	if err != nil {
		return err
	}
	b := []byte{oemStrings, oemHeader, oemHandle & 0xff, oemHandle >> 8, byte(len(list))}
	for _, s := range list {
		b = append(append(b, s...), 0)
	}
	b = append(b, 0)
	if len(b) > oemSize {
		return tooLarge("SMBIOS strings", int64(len(b)), oemSize)
	}
	return writeBytes(w, b)
}

// oemStringsOf returns v's files as strings.
func oemStringsOf(v *Volume) ([]string, error) {
	const format = "a firmware string"
	var list []string
	for _, path := range sortedPaths(v.Files) {
		dir, name, err := firmwareFile(path, format, 255)
		if err != nil {
			return nil, err
		}
		list = append(list, oemPrefixes()[dir]+name+"="+base64.StdEncoding.EncodeToString(v.Files[path]))
	}
	if n := len(list); n == 0 || n > oemCount {
		return nil, imprint.Errorf(imprint.Exhausted, "write", format, "%d strings; there may be 1 to %d", n, oemCount)
	}
	return list, nil
}

// smbios reads one structure of those that [SMBIOS] and [System] write; nil if it is
// none.
func (in *reader) smbios() (*Contents, error) {
	if in.size < oemHeader+2 || in.size > oemSize {
		return nil, nil
	}
	b, err := in.bytes(0, in.size)
	if err != nil {
		return nil, err
	}
	header := int(b[1])
	if header < oemHeader || header > len(b) {
		return nil, nil
	}
	text, whole := bytes.CutSuffix(b[header:], []byte{0, 0})
	list := strings.Split(string(text), "\x00")
	switch {
	case whole && b[0] == systemInfo && header == systemHeader:
		return in.system(b, list)
	case !whole || b[0] != oemStrings || header != oemHeader || len(list) != int(b[4]):
		return nil, nil
	}
	for _, s := range list {
		path, data, err := fromOEMString(s)
		if err != nil {
			return nil, err
		}
		if err := in.add(path, data); err != nil {
			return nil, err
		}
	}
	return &Contents{Format: "smbios", Names: "OEM strings"}, nil
}

// fromOEMString returns the file that a string is.
func fromOEMString(s string) (path string, data []byte, err error) {
	for dir, prefix := range oemPrefixes() {
		rest, ok := strings.CutPrefix(s, prefix)
		name, value, more := strings.Cut(rest, "=")
		if !ok || !more {
			continue
		}
		if data, err := base64.StdEncoding.DecodeString(value); err == nil {
			return dir + name, data, nil
		}
	}
	return "", nil, damaged("the string %.40q is neither imprint's nor a credential", s)
}
