package manifest

import (
	"encoding/json"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"

	"imprint"
)

// Bounds on users that are not the root package's.
const (
	maxUserGroups  = 32
	maxGecosLen    = 128 // bytes
	maxShellLen    = 255 // bytes
	maxHashLen     = 384 // bytes, libcrypt's CRYPT_OUTPUT_SIZE
	minUID, maxUID = 1000, 60000
	// moreInCloudConfig is how many bytes more than in JSON a user takes there,
	// without the hash: the names of its fields are longer.
	moreInCloudConfig = 64
)

// What every system takes for a name (systemd's User/Group Name Syntax, in its
// strict form), for the path of a shell, and for the hash of a password: yescrypt,
// scrypt, bcrypt and SHA-2 of crypt(5). The others of crypt(5) are broken.
var (
	userName  = regexp.MustCompile(`^[a-z_][a-z0-9_-]{0,30}$`)
	groupName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_-]{0,30}$`) // Windows' have capitals
	shellPath = regexp.MustCompile(`^/[A-Za-z0-9/._+-]+$`)
	cryptHash = regexp.MustCompile(`^\$(y|gy|7|2[aby]|5|6)\$[A-Za-z0-9./$=,]{20,}$`)
)

func userFields(u *imprint.User) []field {
	return []field{
		{name: "name", typ: "user name", doc: "The account's name: 1 to 31 lower-case letters, digits, hyphens and underscores, of which the first is no digit or hyphen; on Windows at most 20.", read: textInto(&u.Name)},
		{name: "gecos", typ: "text", doc: "The full name.", read: textInto(&u.Gecos)},
		{name: "uid", typ: "number", doc: "The account's number, from 1000 to 60000; one that the machine chooses if absent. systemd chooses one of a system account.", read: intInto(&u.UID)},
		{name: "groups", typ: "list of group names", doc: "Groups beside the one of its own name; those that are missing are made, except on Windows.", read: listInto(&u.Groups, maxUserGroups, parseText)},
		{name: "shell", typ: "path", doc: "The login shell, which the image has; the system's default if absent, and `/bin/sh` from systemd.", read: textInto(&u.Shell)},
		{name: "admin", typ: "true or false", doc: "Whether the user may do everything: by `sudo` without a password, or as one of Windows' Administrators.", read: boolInto(&u.Admin)},
		{name: "sshKeys", typ: "list of authorized_keys lines", doc: "Public keys that may log in as this user.", read: listInto(&u.SSHKeys, imprint.MaxSSHKeys, parseText)},
		{name: "hashedPassword", typ: "name of a parameter", doc: "The public or private parameter whose value is the password's hash, as `mkpasswd` writes it. Without one nobody logs in by a password. It is where all who can read it may: a private one on no medium and in nothing that stock software reads.", read: textInto(&u.HashedPassword)},
		{name: "passwd", read: instead("hashedPassword")}, {name: "hashed_passwd", read: instead("hashedPassword")},
		{name: "ssh_authorized_keys", read: instead("sshKeys")}, {name: "sudo", read: instead("admin")},
		{name: "plain_text_passwd", read: func(r *reader, n *yaml.Node, path string) {
			r.problem(n, path, "would be a password in the clear; give its hash as hashedPassword")
		}},
	}
}

// instead refuses a key that cloud-init has for what is called by another name here.
func instead(name string) func(*reader, *yaml.Node, string) {
	return func(r *reader, n *yaml.Node, path string) {
		r.problem(n, path, "is cloud-init's; the field is %s here", name)
	}
}

func usersInto(to *[]imprint.User) func(*reader, *yaml.Node, string) {
	return func(r *reader, n *yaml.Node, path string) {
		r.list(n, path, imprint.MaxUsers, func(n *yaml.Node, path string) {
			var u imprint.User
			r.mapping(n, path, userFields(&u))
			*to = append(*to, u)
		})
	}
}

// users judges the accounts; values are as in [check].
func (c *checker) users(s *imprint.Spec, values map[string]imprint.Secret) {
	c.count("users", len(s.Users), imprint.MaxUsers)
	names, uids := map[string]bool{}, map[int]string{}
	for i := range s.Users {
		u, field := &s.Users[i], fmt.Sprintf("users[%d]", i)
		switch {
		case u.Name == "":
			c.fault(field, "has no name")
		case u.Name == "root":
			c.fault(field+".name", "is root, who is always there; root's keys are sshKeys beside users")
		case !userName.MatchString(u.Name):
			c.fault(field+".name", "is %q; 1 to 31 lower-case letters, digits, hyphens and underscores belong here, and first a letter or an underscore", u.Name)
		case names[u.Name]:
			c.fault(field+".name", "%q is there twice", u.Name)
		}
		names[u.Name] = true
		switch other, taken := uids[u.UID]; {
		case u.UID == 0:
		case u.UID < minUID || u.UID > maxUID:
			c.fault(field+".uid", "is %d; it lies between %d and %d", u.UID, minUID, maxUID)
		case taken:
			c.fault(field+".uid", "is that of %s too", other)
		}
		uids[u.UID] = u.Name
		if len(u.Gecos) > maxGecosLen || !utf8.ValidString(u.Gecos) || strings.ContainsFunc(u.Gecos, func(r rune) bool { return r == ':' || unicode.IsControl(r) }) {
			c.fault(field+".gecos", "is longer than %d bytes, or has a colon or a control character", maxGecosLen)
		}
		if u.Shell != "" && (len(u.Shell) > maxShellLen || !shellPath.MatchString(u.Shell) || path.Clean(u.Shell) != u.Shell) {
			c.fault(field+".shell", "is %q; the path of a program like /bin/bash belongs here", u.Shell)
		}
		c.count(field+".groups", len(u.Groups), maxUserGroups)
		for j, group := range u.Groups {
			at := fmt.Sprintf("%s.groups[%d]", field, j)
			switch {
			case !groupName.MatchString(group):
				c.fault(at, "is %q; 1 to 31 letters, digits, hyphens and underscores belong here, and first a letter or an underscore", group)
			case group == u.Name:
				c.fault(at, "is the user's own group, which is always there")
			case slices.Contains(u.Groups[:j], group):
				c.fault(at, "%q is there twice", group)
			}
		}
		c.keys(field+".sshKeys", u.SSHKeys)
		c.hash(field+".hashedPassword", u.HashedPassword, s, values)
	}
	c.usersSize(s)
}

// hash judges the parameter that a user's password is in.
func (c *checker) hash(field, name string, s *imprint.Spec, values map[string]imprint.Secret) {
	if name == "" {
		return
	}
	i := slices.IndexFunc(s.Params, func(p imprint.Param) bool { return p.Name == name })
	if i < 0 {
		c.fault(field, "names the parameter %q, which is not among params; the hash itself belongs there, and its name here", shortName(name))
		return
	}
	p := s.Params[i]
	value, known := p.Value, p.Visibility == imprint.Public
	if !known {
		var secret imprint.Secret
		secret, known = values[name]
		value = string(secret.Reveal())
	}
	switch {
	case p.Visibility == imprint.SecretOnly:
		c.fault(field, "names the parameter %q, which is secret, and the machine keeps its hashes on a disk; make it private", name)
	case known && (len(value) > maxHashLen || !cryptHash.MatchString(value)):
		c.fault(field, "names the parameter %q, whose value is no hash of yescrypt, scrypt, bcrypt or SHA-2 as crypt(3) writes it; make one with mkpasswd", name)
	}
}

// shortName is what may be shown of the name of a parameter that does not exist: a
// hash may have been put in its place.
func shortName(name string) string {
	if nameFault(name) != "" {
		return "…"
	}
	return name
}

// usersSize judges whether the users fit a channel together with the vendor data, with
// which they are put into one document.
func (c *checker) usersSize(s *imprint.Spec) {
	if len(s.Users) == 0 {
		return
	}
	b, err := json.Marshal(s.Users)
	size := len(b) + len(s.Users)*moreInCloudConfig
	for _, u := range s.Users {
		for _, p := range s.Params {
			if p.Name == u.HashedPassword {
				size += len(p.Value)
			}
		}
	}
	switch {
	case err != nil || size > imprint.MaxUsersLen:
		c.fault("users", "have %d bytes together, with their hashes; %d are allowed", size, imprint.MaxUsersLen)
	case s.VendorData != "":
		size = (size + len(s.VendorData)) * 3 / 2 // in base64, with what is around it
		if fault := travelFault(imprint.Public, size, s.Channels); fault != "" {
			c.fault("users", "together with the vendor data: %s", fault)
		}
	}
}
