package dialect

import (
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"imprint"
)

// maxPassword is how many characters the password of a Windows account may have.
const maxPassword = 127

// password returns the value of the parameter called name; "" if that is "". An answer
// file is no place for a secret: the parameter has to be one that all readers may read.
func password(inst *imprint.Instance, name string, readers imprint.Readers) (string, error) {
	if name == "" {
		return "", nil
	}
	operand := "parameter " + name
	i := slices.IndexFunc(inst.Spec.Params, func(p imprint.Param) bool { return p.Name == name })
	if i < 0 {
		return "", imprint.Errorf(imprint.NotFound, "find", operand, "%s has none of that name", inst.Ref())
	}
	p := inst.Spec.Params[i]
	if !imprint.MayTravel(p.Visibility, readers) {
		return "", imprint.Errorf(imprint.Denied, "put", operand+" into an answer file", "it is %s, and not all who can read the medium may read it", p.Visibility).
			WithHint("leave the password out, and let the machine make one: imprint password; or make the parameter public")
	}
	bad := func(c rune) bool { return c == utf8.RuneError || !unicode.IsPrint(c) }
	if n := utf8.RuneCountInString(p.Value); n == 0 || n > maxPassword || strings.IndexFunc(p.Value, bad) >= 0 {
		return "", imprint.Errorf(imprint.Invalid, "put", operand+" into an answer file", "a password has 1 to %d characters that can be printed", maxPassword)
	}
	return p.Value, nil
}
