package media

import (
	"encoding/xml"
	"io"

	"imprint/internal/dialect"
)

// The parts of a domain of libvirt's that say what its firmware says (formatdomain,
// "SMBIOS System Information").
type (
	domain struct {
		XMLName xml.Name    `xml:"domain"`
		SMBIOS  *smbiosMode `xml:"os>smbios"`
		Info    sysinfo     `xml:"sysinfo"`
	}
	smbiosMode struct {
		Mode string `xml:"mode,attr"`
	}
	sysinfo struct {
		Type    string         `xml:"type,attr"`
		Entries []sysinfoEntry `xml:"entry"`
		System  *sysinfoSystem `xml:"system"` // libvirt's schema knows none that are empty
		OEM     *sysinfoOEM    `xml:"oemStrings"`
	}
	sysinfoSystem struct {
		Entries []sysinfoEntry `xml:"entry"`
	}
	sysinfoOEM struct {
		Strings []string `xml:"entry"`
	}
	sysinfoEntry struct {
		Name  string `xml:"name,attr"`
		File  string `xml:"file,attr,omitempty"`
		Value string `xml:",chardata"`
	}
)

func xmlOf(d domain) []byte {
	b, err := xml.MarshalIndent(d, "", "  ")
	if err != nil { // these types always encode
		return nil
	}
	return append(b, '\n')
}

// LibvirtOEM writes v's files as the OEM strings of a domain, of which [SMBIOS] makes
// a structure. libvirt puts them on QEMU's command line. It fails as that does.
func LibvirtOEM(w io.Writer, v *Volume) error {
	list, err := oemStringsOf(v)
	if err != nil {
		return err
	}
	return writeDomain(w, sysinfo{OEM: &sysinfoOEM{list}})
}

// LibvirtSystem writes the serial number in v as that of a domain, whose UUID is
// libvirt's own. It fails as [System] does.
func LibvirtSystem(w io.Writer, v *Volume) error {
	if _, err := systemOf(v); err != nil {
		return err
	}
	return writeDomain(w, sysinfo{System: &sysinfoSystem{[]sysinfoEntry{{Name: "serial", Value: string(v.Files[dialect.SystemSerial])}}}})
}

func writeDomain(w io.Writer, info sysinfo) error {
	info.Type = "smbios"
	return writeBytes(w, xmlOf(domain{SMBIOS: &smbiosMode{"sysinfo"}, Info: info}))
}
