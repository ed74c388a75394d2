package media

import (
	"encoding/binary"
	"encoding/hex"
	"io"
	"maps"
	"slices"
	"strings"

	"imprint"
	"imprint/internal/dialect"
)

// SMBIOS structure of type 1, system information (DSP0134 section 7.2), in numbers.
const (
	systemInfo   = 1
	systemHeader = 27     // bytes before the strings
	systemHandle = 0x0100 // as QEMU's own of this type
	systemSerial = 7      // where the number of the serial number's string is
	systemUUID   = 8      // where the UUID is
	systemWakeUp = 24     // where the reason is why the system started
	byPower      = 6      // that it was switched on
	// systemSize is how many bytes the files may have together.
	systemSize = 255
)

// systemMaker is the manufacturer in the structure, by which guests know QEMU.
const systemMaker = "QEMU"

// System writes the structure of the system as a whole, for QEMU's "-smbios file=", in
// the place of what it would make of "-smbios type=1". The files in v are those of the
// form [dialect.System]. The label and the time play no part. It fails as [ISO] does.
func System(w io.Writer, v *Volume) error {
	b, err := systemOf(v)
	if err != nil {
		return err
	}
	return writeBytes(w, b)
}

func systemOf(v *Volume) ([]byte, error) {
	for _, path := range slices.Sorted(maps.Keys(v.Files)) {
		if path != dialect.SystemUUID && path != dialect.SystemSerial {
			return nil, refuse(path, "there are %s and %s", dialect.SystemUUID, dialect.SystemSerial)
		}
	}
	uuid, serial := string(v.Files[dialect.SystemUUID]), string(v.Files[dialect.SystemSerial])
	if n := len(uuid) + len(serial); n > systemSize {
		return nil, tooLarge("system information", int64(n), systemSize)
	}
	if strings.IndexFunc(serial, func(c rune) bool { return c < ' ' || c > '~' }) >= 0 || serial == "" {
		return nil, refuse(dialect.SystemSerial, "it may have only characters of ASCII that can be printed, and needs one")
	}
	id, err := hex.DecodeString(strings.ReplaceAll(uuid, "-", ""))
	if err != nil || !imprint.ValidID(uuid) {
		return nil, refuse(dialect.SystemUUID, "it is no UUID")
	}
	b := make([]byte, systemHeader)
	b[0], b[1], b[systemWakeUp] = systemInfo, systemHeader, byPower
	binary.LittleEndian.PutUint16(b[2:], systemHandle)
	b[4], b[systemSerial] = 1, 2
	copy(b[systemUUID:], swapUUID(id))
	return append(b, systemMaker+"\x00"+serial+"\x00\x00"...), nil
}

// swapUUID exchanges the order of bytes in the first three fields, which SMBIOS has
// in little endian since version 2.6.
func swapUUID(id []byte) []byte {
	s := slices.Clone(id)
	slices.Reverse(s[:4])
	slices.Reverse(s[4:6])
	slices.Reverse(s[6:8])
	return s
}

// system reads a structure of type 1 with its strings.
func (in *reader) system(b []byte, list []string) (*Contents, error) {
	id := hex.EncodeToString(swapUUID(b[systemUUID : systemUUID+16]))
	id = id[:8] + "-" + id[8:12] + "-" + id[12:16] + "-" + id[16:20] + "-" + id[20:]
	if err := in.add(dialect.SystemUUID, []byte(id)); err != nil {
		return nil, err
	}
	if n := int(b[systemSerial]); n > len(list) {
		return nil, damaged("its serial number is string %d, and there are %d", n, len(list))
	} else if n > 0 {
		if err := in.add(dialect.SystemSerial, []byte(list[n-1])); err != nil {
			return nil, err
		}
	}
	return &Contents{Format: "smbios", Names: "system information"}, nil
}
