package reader

import (
	"bytes"
	"fmt"
)

// HeadLen is how many bytes of a file [Recognize] looks at.
const HeadLen = 512

// The formats' names.
const (
	Raw   = "raw"
	Qcow2 = "qcow2"
	VMDK  = "vmdk"
)

// Format is what an image's file is.
type Format struct {
	Name        string // Raw, Qcow2 or VMDK
	Compression Compression
}

// String returns for example "qcow2", or "gzip around raw".
func (f Format) String() string {
	if f.Compression != "" {
		return string(f.Compression) + " around " + f.Name
	}
	return f.Name
}

// Recognize tells a format by a file's first bytes, and fails if they are those of an
// image or archive that imprint does not read. Whatever has none of the known
// beginnings is raw.
func Recognize(head []byte) (Format, error) {
	begins := func(s string) bool { return bytes.HasPrefix(head, []byte(s)) }
	for magic, f := range map[string]Format{
		"QFI\xfb": {Name: Qcow2}, "KDMV": {Name: VMDK},
		"\x1f\x8b\x08": {Raw, Gzip}, "\xfd7zXZ\x00": {Raw, XZ}, "\x28\xb5\x2f\xfd": {Raw, Zstd},
	} {
		if begins(magic) {
			return f, nil
		}
	}
	if begins("BZh") && len(head) > 10 && head[3] >= '1' && head[3] <= '9' && string(head[4:10]) == "\x31\x41\x59\x26\x53\x59" {
		return Format{Raw, Bzip2}, nil
	}
	for magic, what := range map[string]string{
		"QED\x00": "a QED image", "COWD": "a VMDK image of the ESX type", "# Disk DescriptorFile": "the descriptor of a VMDK image, whose data are in other files",
		"vhdxfile": "a VHDX image", "conectix": "a VHD image", "WithoutFreeSpace": "a Parallels image", "WithouFreSpacExt": "a Parallels image",
		"\xce\xfa\xed\xfe": "a seSparse VMDK image", "PK\x03\x04": "a zip archive", "7z\xbc\xaf\x27\x1c": "a 7z archive", "Rar!\x1a\x07": "a rar archive",
		"\x04\x22\x4d\x18": "an lz4 file", "LZIP": "an lzip file", "<!DOCTYPE": "a web page", "<!doctype": "a web page", "<html": "a web page",
	} {
		if begins(magic) {
			return Format{Name: Raw}, fmt.Errorf("it is %s", what)
		}
	}
	switch {
	case len(head) > 68 && string(head[64:68]) == "\x7f\x10\xda\xbe":
		return Format{Name: Raw}, fmt.Errorf("it is a VDI image")
	case len(head) > 265 && string(head[257:262]) == "ustar":
		return Format{Name: Raw}, fmt.Errorf("it is a tar archive")
	}
	return Format{Name: Raw}, nil
}
