package media

import (
	"encoding/xml"
)

// sysinfo is the element of a domain of libvirt's that holds what its firmware says
// (formatdomain, "SMBIOS System Information").
type sysinfo struct {
	XMLName xml.Name       `xml:"sysinfo"`
	Type    string         `xml:"type,attr"`
	Entries []sysinfoEntry `xml:"entry"`
}

type sysinfoEntry struct {
	Name  string `xml:"name,attr,omitempty"`
	File  string `xml:"file,attr,omitempty"`
	Value string `xml:",chardata"`
}

// xml returns the element of a type.
func (s sysinfo) xml(kind string) []byte {
	s.Type = kind
	b, err := xml.MarshalIndent(s, "", "  ")
	if err != nil { // these types always encode
		return nil
	}
	return append(b, '\n')
}
