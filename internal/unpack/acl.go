package unpack

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
)

// account is a user, or a group, by name.
type account struct {
	group bool
	name  string
}

// parseACL turns an access control list as tar has it, such as
// "user::rwx,user:joe:r--:1000,group::r-x,mask::r-x,other::---", into the extended
// attribute that Linux keeps it in (linux/posix_acl_xattr.h). A name that has no number
// behind it, which only some tars write, is looked up.
func parseACL(text string, lookUp func(account) (uint32, bool)) (string, error) {
	const version, undefined = 2, math.MaxUint32
	type ace struct {
		tag, perm uint16
		id        uint32
	}
	tags := map[string][2]uint16{ // without and with a name
		"user": {0x01, 0x02}, "group": {0x04, 0x08}, "mask": {0x10, 0}, "other": {0x20, 0},
	}
	var list []ace
	for line := range strings.FieldsFuncSeq(text, func(r rune) bool { return r == ',' || r == '\n' }) {
		line, _, _ = strings.Cut(line, "#") // what getfacl adds
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		fields := strings.Split(line, ":")
		tag, ok := tags[fields[0]]
		if tag[1] == 0 && len(fields) == 2 {
			fields = []string{fields[0], "", fields[1]} // as in mask:r-x
		}
		if !ok || len(fields) < 3 || len(fields) > 4 || fields[1] != "" && tag[1] == 0 {
			return "", fmt.Errorf("%q is no entry of one", line)
		}
		e := ace{tag: tag[0], id: undefined}
		if name := fields[1]; name != "" {
			number := name
			if len(fields) == 4 {
				number = fields[3]
			}
			id, err := strconv.ParseUint(number, 10, 32)
			if e.tag, e.id = tag[1], uint32(id); err != nil {
				if e.id, ok = lookUp(account{fields[0] == "group", name}); !ok {
					return "", fmt.Errorf("nobody knows which number %s %q has", fields[0], name)
				}
			}
		}
		for i, c := range fields[2] {
			bit := strings.IndexRune("rwx", c)
			if c != '-' && bit < 0 || i > 2 {
				return "", fmt.Errorf("%q has no permissions", line)
			}
			if bit >= 0 {
				e.perm |= 4 >> bit
			}
		}
		list = append(list, e)
	}
	slices.SortStableFunc(list, func(a, b ace) int { return cmp.Or(cmp.Compare(a.tag, b.tag), cmp.Compare(a.id, b.id)) })
	b := binary.LittleEndian.AppendUint32(nil, version)
	for _, e := range list {
		b = binary.LittleEndian.AppendUint16(b, e.tag)
		b = binary.LittleEndian.AppendUint16(b, e.perm)
		b = binary.LittleEndian.AppendUint32(b, e.id)
	}
	return string(b), nil
}
