package guest

import (
	"bytes"
	"context"
	"encoding/base64"

	"imprint"
)

// Where the firmware that the platform made has a payload, by names below
// imprint's own domain.
const (
	// firmwareFile is the name of a file of QEMU's fw_cfg (docs/specs/fw_cfg.txt).
	firmwareFile = "opt/org.imprint/payload"
	// firmwareString is what an SMBIOS OEM string begins with; the payload follows in base64.
	firmwareString = "org.imprint:payload="
)

// maxSMBIOS is how large a table of SMBIOS structures is that is looked through,
// in bytes: that of an entry point of version 2.1, which all hypervisors stay below.
const maxSMBIOS = 64 << 10

// firmwareSources returns the sources that a platform fills before the machine
// starts. Root alone may read them; on Windows everybody may read SMBIOS tables,
// and nobody fw_cfg.
func firmwareSources(l Layout) []source { return []source{fwCfgSource{l}, smbiosSource{l}} }

// fwCfgSource is a file of QEMU's fw_cfg. The kernel's module qemu_fw_cfg shows
// it, which udev and systemd load.
type fwCfgSource struct{ layout Layout }

func (s fwCfgSource) String() string { return "fw_cfg " + firmwareFile }

func (s fwCfgSource) Try(context.Context) (*finding, error) {
	b, err := readFile(s.layout.at("sys", "firmware", "qemu_fw_cfg", "by_name", firmwareFile, "raw"), imprint.MaxPayload)
	if imprint.KindOf(err) == imprint.NotFound {
		return nil, imprint.Errorf(imprint.NotFound, "read", s.String(), "the machine has none")
	}
	if err != nil {
		return nil, err
	}
	return &finding{source: s.String(), payload: b}, nil
}

// smbiosSource is an OEM string of the machine's SMBIOS. It is looked for in the
// table itself, which every kernel shows: the entries one by one need the module
// dmi-sysfs.
type smbiosSource struct{ layout Layout }

func (s smbiosSource) String() string { return "SMBIOS string " + firmwareString }

func (s smbiosSource) Try(context.Context) (*finding, error) {
	table, err := readFile(s.layout.at("sys", "firmware", "dmi", "tables", "DMI"), maxSMBIOS)
	if err != nil && imprint.KindOf(err) != imprint.NotFound {
		return nil, err
	}
	text := oemString(table, firmwareString)
	if text == nil {
		return nil, imprint.Errorf(imprint.NotFound, "read", s.String(), "the machine has none")
	}
	payload, err := base64.StdEncoding.DecodeString(string(text))
	if err != nil || len(payload) > imprint.MaxPayload {
		return nil, imprint.Errorf(imprint.Invalid, "read", s.String(), "it is not a payload in base64")
	}
	return &finding{source: s.String(), payload: payload}, nil
}

// oemString returns what follows prefix in the first OEM string that begins with
// it; nil if there is none. table is a sequence of SMBIOS structures (DSP0134
// section 6.1), each with its strings behind it; one that is cut off ends it.
func oemString(table []byte, prefix string) []byte {
	const oemStrings, endOfTable, header = 11, 127, 4
	for len(table) >= header {
		kind, length := table[0], int(table[1])
		if kind == endOfTable || length < header || length > len(table) {
			return nil
		}
		text, rest, whole := bytes.Cut(table[length:], []byte{0, 0})
		if !whole {
			return nil
		}
		if kind == oemStrings {
			for s := range bytes.SplitSeq(text, []byte{0}) {
				if value, ok := bytes.CutPrefix(s, []byte(prefix)); ok {
					return value
				}
			}
		}
		table = rest
	}
	return nil
}
