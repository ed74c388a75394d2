// Package varstore reads and writes the variable store of OVMF, the UEFI firmware of
// QEMU, while the machine is off: the file that begins as OVMF_VARS.fd.
//
// The format is that of edk2's MdeModulePkg/Include/Guid/VariableFormat.h within a
// firmware volume (UEFI Platform Initialization Specification, volume 3, chapter 3).
// Only the variables' part of the file is written: what the firmware keeps behind it
// for its own crash safety stays.
package varstore

import (
	"bytes"
	"encoding/binary"
	"slices"
	"unicode/utf16"

	"imprint"
)

// Limits of a store.
const (
	MaxSize      = 16 << 20 // bytes of the file
	maxVariables = 4096
)

// Attributes of a variable that is kept, and that both firmware and system may read.
const Attributes = 1 | 2 | 4 // NON_VOLATILE, BOOTSERVICE_ACCESS, RUNTIME_ACCESS

// Global is the vendor of the variables that the UEFI specification defines
// (8BE4DF61-93CA-11D2-AA0D-00E098032B8C), as it is in the store.
func Global() [16]byte {
	return [16]byte{0x61, 0xdf, 0xe4, 0x8b, 0xca, 0x93, 0xd2, 0x11, 0xaa, 0x0d, 0x00, 0xe0, 0x98, 0x03, 0x2b, 0x8c}
}

// Variable is one variable.
type Variable struct {
	Name       string
	Vendor     [16]byte
	Attributes uint32
	Data       []byte

	// What an authenticated variable has of its writer stays as it is.
	count     uint64
	timestamp [16]byte
	key       uint32
}

// Store is a file that was understood.
type Store struct {
	Variables []Variable
	file      []byte
	from, end int // where variables are in the file
}

// Sizes and marks.
const (
	storeHeader    = 28
	variableHeader = 60
	startID        = 0x55aa
	added          = 0x3f
	deleting       = 0x3e // a newer one was being written; it counts if that is not there
)

func volumeGUID() []byte {
	return []byte{0x8d, 0x2b, 0xf1, 0xff, 0x96, 0x76, 0x8b, 0x4c, 0xa9, 0x85, 0x27, 0x47, 0x07, 0x5b, 0x4f, 0x50}
}

func authenticatedGUID() []byte {
	return []byte{0x78, 0x2c, 0xf3, 0xaa, 0x7b, 0x94, 0x9a, 0x43, 0xa1, 0x80, 0x2e, 0x14, 0x4e, 0xc3, 0x77, 0x92}
}

func refused(format string, args ...any) *imprint.Error {
	return imprint.Errorf(imprint.Invalid, "read", "UEFI variables", format, args...)
}

// Read understands a store whole, or fails with kind [imprint.Invalid]. It keeps b.
func Read(b []byte) (*Store, error) {
	le := binary.LittleEndian
	if len(b) > MaxSize || len(b) < 128 {
		return nil, refused("%d bytes are no variable store of OVMF", len(b))
	}
	if string(b[:4]) == "QFI\xfb" {
		return nil, refused("it is a qcow2 image").WithHint("convert it first: qemu-img convert -O raw")
	}
	if !bytes.Equal(b[16:32], volumeGUID()) || string(b[40:44]) != "_FVH" {
		return nil, refused("it does not begin as a firmware volume for variables").WithHint("start from a copy of OVMF_VARS_4M.fd, and not of OVMF_CODE")
	}
	header := int(le.Uint16(b[48:]))
	if sum16(b, header) != 0 {
		return nil, refused("the checksum of its header is wrong")
	}
	s := &Store{file: b, from: header + storeHeader}
	if s.from > len(b) {
		return nil, refused("it ends within its header")
	}
	h := b[header:]
	if !bytes.Equal(h[:16], authenticatedGUID()) || h[20] != 0x5a || h[21] != 0xfe {
		return nil, refused("its variables have a format that imprint does not know")
	}
	size := int64(le.Uint32(h[16:]))
	if size < storeHeader || int64(header)+size > int64(len(b)) {
		return nil, refused("it says that its variables take %d bytes", size)
	}
	s.end = header + int(size)
	return s, s.parse()
}

// sum16 is the sum of the words of a header, which is 0 if that is whole; it is 1 for
// what is no header.
func sum16(b []byte, n int) uint16 {
	if n < 64 || n%2 != 0 || n > len(b) {
		return 1
	}
	var sum uint16
	for i := 0; i < n; i += 2 {
		sum += binary.LittleEndian.Uint16(b[i:])
	}
	return sum
}

func (s *Store) parse() error {
	le := binary.LittleEndian
	seen := map[string]int{} // where in the list, by vendor and name
	for at := align(s.from); at+variableHeader <= s.end; {
		h := s.file[at:s.end]
		if le.Uint16(h) != startID {
			if le.Uint16(h) == 0xffff {
				return nil
			}
			return refused("there is no variable at byte %d", at)
		}
		name, data := int64(le.Uint32(h[36:])), int64(le.Uint32(h[40:]))
		state := h[2]
		if name+data > int64(len(h)-variableHeader) || name%2 != 0 {
			return refused("the variable at byte %d has %d bytes of name and %d of data, of %d that are left", at, name, data, len(h))
		}
		v := Variable{
			Attributes: le.Uint32(h[4:]), count: le.Uint64(h[8:]), timestamp: [16]byte(h[16:32]), key: le.Uint32(h[32:]), Vendor: [16]byte(h[44:60]),
			Name: fromUCS2(h[variableHeader : variableHeader+name]), Data: h[variableHeader+name : variableHeader+name+data],
		}
		id := string(v.Vendor[:]) + v.Name
		i, again := seen[id]
		switch {
		case state == added && again:
			s.Variables[i] = v
		case (state == added || state == deleting) && !again:
			if len(s.Variables) == maxVariables {
				return refused("it has more than %d variables", maxVariables)
			}
			seen[id] = len(s.Variables)
			s.Variables = append(s.Variables, v)
		}
		at = align(at + variableHeader + int(name+data))
	}
	return nil
}

func align(n int) int { return (n + 3) &^ 3 }

// Get returns a variable's data, or nil.
func (s *Store) Get(vendor [16]byte, name string) []byte {
	if i := s.index(vendor, name); i >= 0 {
		return s.Variables[i].Data
	}
	return nil
}

func (s *Store) index(vendor [16]byte, name string) int {
	return slices.IndexFunc(s.Variables, func(v Variable) bool { return v.Vendor == vendor && v.Name == name })
}

// Set sets a variable, with [Attributes] if it is new.
func (s *Store) Set(vendor [16]byte, name string, data []byte) {
	if i := s.index(vendor, name); i >= 0 {
		s.Variables[i].Data = data
		return
	}
	s.Variables = append(s.Variables, Variable{Name: name, Vendor: vendor, Attributes: Attributes, Data: data})
}

// Bytes lays the store out as a file. It fails with kind [imprint.Exhausted] if the
// variables take more room than there is.
func (s *Store) Bytes() ([]byte, error) {
	le := binary.LittleEndian
	b := bytes.Clone(s.file)
	area := b[s.from:s.end]
	for i := range area {
		area[i] = 0xff
	}
	at := align(s.from)
	for _, v := range s.Variables {
		name := toUCS2(v.Name)
		if at+variableHeader+len(name)+len(v.Data) > s.end {
			return nil, imprint.Errorf(imprint.Exhausted, "write", "UEFI variables", "they take more than the %d bytes that the store has", s.end-s.from)
		}
		h := b[at:s.end]
		le.PutUint16(h, startID)
		h[2], h[3] = added, 0
		le.PutUint32(h[4:], v.Attributes)
		le.PutUint64(h[8:], v.count)
		copy(h[16:32], v.timestamp[:])
		le.PutUint32(h[32:], v.key)
		le.PutUint32(h[36:], uint32(len(name)))
		le.PutUint32(h[40:], uint32(len(v.Data)))
		copy(h[44:60], v.Vendor[:])
		copy(h[variableHeader:], name)
		copy(h[variableHeader+len(name):], v.Data)
		at = align(at + variableHeader + len(name) + len(v.Data))
	}
	return b, nil
}

// fromUCS2 is the text of a name up to its end.
func fromUCS2(b []byte) string {
	var u []uint16
	for ; len(b) >= 2; b = b[2:] {
		c := binary.LittleEndian.Uint16(b)
		if c == 0 {
			break
		}
		u = append(u, c)
	}
	return string(utf16.Decode(u))
}

// toUCS2 is a text with its end.
func toUCS2(s string) []byte {
	var b []byte
	for _, c := range append(utf16.Encode([]rune(s)), 0) {
		b = binary.LittleEndian.AppendUint16(b, c)
	}
	return b
}
