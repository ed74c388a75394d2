package imprint

import (
	"errors"
	"fmt"
)

// Kind says what sort of failure an [Error] is. Kinds are only ever added;
// internal/server maps each to one HTTP status and internal/cli to one exit code.
type Kind uint8

// The kinds of failure.
const (
	Internal     Kind = iota // a defect or a broken dependency; details stay inside
	Invalid                  // the input is wrong; sending it again will not help
	NotFound                 // the operand does not exist
	Exists                   // the operand exists already
	Conflict                 // the operand is in a state that does not allow this
	Denied                   // the caller may not do this
	Unauthorized             // the caller did not prove who it is
	Pending                  // an operator has to approve first; ask again later
	Unavailable              // a dependency cannot be reached; ask again later
	Exhausted                // a limit or a disk is full
	Contested                // a second key claimed the same generation
)

var kindNames = [...]string{
	Internal: "internal", Invalid: "invalid", NotFound: "not found", Exists: "exists",
	Conflict: "conflict", Denied: "denied", Unauthorized: "unauthorized", Pending: "pending",
	Unavailable: "unavailable", Exhausted: "exhausted", Contested: "contested",
}

// String returns the kind's name as it appears in API errors.
func (k Kind) String() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return fmt.Sprintf("kind(%d)", uint8(k))
}

// ParseKind is the inverse of [Kind.String]; an unknown name is [Internal].
func ParseKind(s string) Kind {
	for k, name := range kindNames {
		if name == s {
			return Kind(k)
		}
	}
	return Internal
}

// Error is imprint's one domain error. It reads "operation operand: cause".
type Error struct {
	Kind    Kind
	Op      string // what was tried, a verb: "create", "claim"
	Operand string // on what: an instance, a field, a file
	Err     error  // why; may be nil
	Hint    string // what the user can do about it; may be empty
}

// Errorf returns an [Error] whose cause is formatted as by [fmt.Errorf].
func Errorf(kind Kind, op, operand, format string, args ...any) *Error {
	return &Error{Kind: kind, Op: op, Operand: operand, Err: fmt.Errorf(format, args...)}
}

// WithHint returns a copy of e that tells the user what to do.
func (e *Error) WithHint(format string, args ...any) *Error {
	c := *e
	c.Hint = fmt.Sprintf(format, args...)
	return &c
}

func (e *Error) Error() string {
	s := e.Op
	if e.Operand != "" {
		s += " " + e.Operand
	}
	if e.Err != nil {
		return s + ": " + e.Err.Error()
	}
	return s + ": " + e.Kind.String()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// KindOf returns the kind of the outermost [Error] in err's chain, and
// [Internal] if there is none.
func KindOf(err error) Kind {
	var e *Error
	if errors.As(err, &e) {
		return e.Kind
	}
	return Internal
}

// HintOf returns the first hint in err's chain, or "".
func HintOf(err error) string {
	for err != nil {
		var e *Error
		if !errors.As(err, &e) {
			return ""
		}
		if e.Hint != "" {
			return e.Hint
		}
		err = e.Err
	}
	return ""
}
