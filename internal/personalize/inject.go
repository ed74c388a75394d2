package personalize

import (
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"imprint"
)

// Injection is a file or directory of this machine that a guest is to have.
type Injection struct {
	Local string // path here
	Guest string // absolute path there, clean; of a file, with its name
	// Mode is that of the file, or of every file in the directory; a directory gets the
	// right to enter it for whoever may read. nil is the permissions that they have here,
	// without setuid and setgid.
	Mode *uint32
	// User and Group own it: a number, or a name that the guest's /etc/passwd or
	// /etc/group has. "" is root.
	User, Group string
}

// Limits of an injection.
const (
	MaxInjections = 256       // at once
	maxGuestPath  = 4000      // bytes
	maxOwnerName  = 32        // bytes, as useradd has it
	maxOwnerID    = 1<<32 - 2 // the last number means nobody to chown(2)
)

const injectionHint = `write LOCAL:GUEST, or LOCAL:GUEST:MODE:USER:GROUP as in keys/db.key:/etc/db/key:0640:root:postgres; \: is a colon in a name, and \\ a backslash`

// ParseInjection reads "LOCAL:GUEST[:MODE[:USER[:GROUP]]]". A part that is empty is
// as if it were not there; a backslash takes the meaning from a colon or a backslash.
// A guest path that ends with a slash is the directory that gets LOCAL, if that is a file.
// It fails with kind [imprint.Invalid].
func ParseInjection(s string) (Injection, error) {
	invalid := func(format string, a ...any) (Injection, error) {
		return Injection{}, imprint.Errorf(imprint.Invalid, "inject", s, format, a...).WithHint(injectionHint)
	}
	parts, ok := split(s)
	switch {
	case !ok:
		return invalid("it ends in a backslash, or has one before something that needs none")
	case len(parts) < 2:
		return invalid("it does not say where the guest is to have it")
	case len(parts) > 5:
		return invalid("it has %d parts; 2 to 5 are allowed", len(parts))
	case strings.ContainsRune(s, 0):
		return invalid("it has a zero byte")
	case parts[0] == "":
		return invalid("it does not say which file it is")
	}
	parts = append(parts, "", "", "")
	in := Injection{Local: parts[0], Guest: parts[1], User: parts[3], Group: parts[4]}
	switch {
	case !strings.HasPrefix(in.Guest, "/"):
		return invalid("the guest's path %q is not absolute", in.Guest)
	case len(in.Guest) > maxGuestPath:
		return invalid("the guest's path has more than %d bytes", maxGuestPath)
	}
	for part := range strings.SplitSeq(in.Guest, "/") {
		if part == ".." {
			return invalid("the guest's path goes up by ..")
		}
	}
	into := strings.HasSuffix(in.Guest, "/")
	if in.Guest = path.Clean(in.Guest); into && in.Guest != "/" {
		in.Guest += "/"
	}
	if parts[2] != "" {
		mode, err := strconv.ParseUint(parts[2], 8, 32)
		if err != nil || mode > 0o7777 {
			return invalid("%q is no mode such as 0640", parts[2])
		}
		m := uint32(mode)
		in.Mode = &m
	}
	for _, who := range []string{in.User, in.Group} {
		if !validOwner(who) {
			return invalid("%q is neither the name nor the number of a user or group", who)
		}
	}
	return in, nil
}

// split cuts s at the colons that have no backslash before them.
func split(s string) (parts []string, ok bool) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == ':':
			parts = append(parts, b.String())
			b.Reset()
			continue
		case c == '\\':
			if i++; i == len(s) || s[i] != ':' && s[i] != '\\' {
				return nil, false
			}
		}
		b.WriteByte(s[i])
	}
	return append(parts, b.String()), true
}

func validOwner(s string) bool {
	if n, err := strconv.ParseUint(s, 10, 64); err == nil {
		return n <= maxOwnerID
	}
	for i, c := range []byte(s) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', c == '_':
		case i > 0 && ('0' <= c && c <= '9' || c == '-' || c == '.' || c == '$'):
		default:
			return false
		}
	}
	return len(s) <= maxOwnerName
}

// inGuest is where the file in the directory of the injection that is called rel there
// goes; "." is the injection itself. The path is relative, as in an archive.
func (in *Injection) inGuest(rel string, dir bool) string {
	p := in.Guest
	if !dir && strings.HasSuffix(p, "/") {
		p += filepath.Base(in.Local)
	}
	return strings.TrimPrefix(path.Join(p, filepath.ToSlash(rel)), "/")
}
