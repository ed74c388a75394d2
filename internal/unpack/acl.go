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

// parseACL turns an access control list as tar has it, such as
// "user::rwx,user:joe:r--:1000,group::r-x,mask::r-x,other::---", into the extended
// attribute that Linux keeps it in (linux/posix_acl_xattr.h). Users and groups that
// are named have to have their number, which tars put behind the permissions or in
// place of the name.
func parseACL(text string) ([]byte, error) {
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
		if fields[0] == "other" || fields[0] == "mask" { // bsdtar writes other:r--
			if len(fields) == 2 {
				fields = []string{fields[0], "", fields[1]}
			}
		}
		if !ok || len(fields) < 3 || len(fields) > 4 {
			return nil, fmt.Errorf("%q is no entry of one", line)
		}
		e := ace{tag: tag[0], id: undefined}
		if name := fields[1]; name != "" {
			number := name
			if len(fields) == 4 {
				number = fields[3]
			}
			id, err := strconv.ParseUint(number, 10, 32)
			if err != nil || tag[1] == 0 || id == undefined {
				return nil, fmt.Errorf("%q has no number of a user or group", line)
			}
			e.tag, e.id = tag[1], uint32(id)
		}
		for i, c := range fields[2] {
			bit := strings.IndexRune("rwx", c)
			if c != '-' && bit < 0 || i > 2 {
				return nil, fmt.Errorf("%q has no permissions", line)
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
	return b, nil
}
