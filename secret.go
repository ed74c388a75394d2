package imprint

import (
	"crypto/subtle"
	"fmt"
	"log/slog"
)

// redacted is all that a Secret ever shows of itself.
const redacted = "[redacted]"

// Secret is a value that must not be seen. It prints, logs and marshals as
// "[redacted]"; [Secret.Reveal] is the only way to its bytes, so that a search
// for that name finds every place where a secret leaves its wrapper.
type Secret struct{ b []byte }

// NewSecret wraps b without copying it.
func NewSecret(b []byte) Secret { return Secret{b} }

// Reveal returns the bytes. The caller must neither log nor store them.
func (s Secret) Reveal() []byte { return s.b }

// IsZero reports whether s holds nothing.
func (s Secret) IsZero() bool { return len(s.b) == 0 }

// Equal compares in constant time for values of equal length.
func (s Secret) Equal(t Secret) bool { return subtle.ConstantTimeCompare(s.b, t.b) == 1 }

// Format implements [fmt.Formatter] for every verb, so that %x shows nothing either.
func (s Secret) Format(f fmt.State, _ rune) { f.Write([]byte(redacted)) }

// String returns "[redacted]".
func (s Secret) String() string { return redacted }

// LogValue implements [slog.LogValuer].
func (s Secret) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText implements [encoding.TextMarshaler], and through it JSON and YAML.
func (s Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }
