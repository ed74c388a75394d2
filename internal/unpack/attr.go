package unpack

import (
	"encoding/base64"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
)

// attrsOf returns the extended attributes that the pax records of an entry hold, in
// the order of their names: as star, GNU tar, bsdtar and Go write them, and in GNU
// tar's own records for SELinux.
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
			name := "system.posix_acl_" + strings.TrimPrefix(key, "SCHILY.acl.")
			b, err := parseACL(value)
			if err != nil {
				return nil, fmt.Errorf("the access control list: %w", err)
			}
			attrs[name] = string(b)
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
