package unpack

import (
	"encoding/base64"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
)

// aclText and aclAttr begin the names of access control lists: in attrs, where they are
// text, and in the filesystem.
const (
	aclText = "system.acl-text."
	aclAttr = "system.posix_acl_"
)

// binary returns a as the filesystem has it.
func (a attr) binary(lookUp func(account) (uint32, bool)) (attr, error) {
	name, ok := strings.CutPrefix(a.name, aclText)
	if !ok {
		return a, nil
	}
	value, err := parseACL(a.value, lookUp)
	if err != nil {
		return a, fmt.Errorf("the access control list: %w", err)
	}
	return attr{aclAttr + name, value}, nil
}

// attrsOf returns the extended attributes that the pax records of an entry hold, in
// the order of their names: as star, GNU tar, bsdtar and Go write them, and in GNU
// tar's own records for SELinux. Access control lists are still text.
func attrsOf(records map[string]string) ([]attr, error) {
	attrs := map[string]string{}
	for key, value := range records {
		switch {
		case strings.HasPrefix(key, "SCHILY.xattr."):
			// GNU tar escapes what a key cannot hold.
			name := strings.NewReplacer("%3D", "=", "%25", "%").Replace(strings.TrimPrefix(key, "SCHILY.xattr."))
			attrs[name] = value
		case strings.HasPrefix(key, "LIBARCHIVE.xattr."):
			// bsdtar writes both this and the one above, unless told otherwise.
			name, err := url.PathUnescape(strings.TrimPrefix(key, "LIBARCHIVE.xattr."))
			if err != nil {
				return nil, fmt.Errorf("the extended attribute %q: %w", key, err)
			}
			if _, ok := records["SCHILY.xattr."+name]; ok {
				continue
			}
			b, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(value, "="))
			if err != nil {
				return nil, fmt.Errorf("the extended attribute %q: %w", name, err)
			}
			attrs[name] = string(b)
		case key == "RHT.security.selinux":
			// The attribute ends with a zero byte, the record does not.
			attrs["security.selinux"] = strings.TrimRight(value, "\x00") + "\x00"
		case key == "SCHILY.acl.access", key == "SCHILY.acl.default":
			attrs[aclText+strings.TrimPrefix(key, "SCHILY.acl.")] = value
		}
	}
	if len(attrs) > MaxAttributes {
		return nil, fmt.Errorf("it has %d extended attributes; %d are allowed", len(attrs), MaxAttributes)
	}
	all := make([]attr, 0, len(attrs))
	for _, name := range slices.Sorted(maps.Keys(attrs)) {
		if space, rest, _ := strings.Cut(name, "."); rest == "" || len(name) > MaxName || strings.ContainsRune(name, 0) ||
			!slices.Contains([]string{"user", "trusted", "security", "system"}, space) {
			return nil, fmt.Errorf("Linux has no extended attribute %q", name)
		}
		if n := len(attrs[name]); n > MaxAttribute {
			return nil, fmt.Errorf("the extended attribute %q has %d bytes; %d are allowed", name, n, MaxAttribute)
		}
		all = append(all, attr{name, attrs[name]})
	}
	return all, nil
}
