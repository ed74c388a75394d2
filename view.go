package imprint

import "time"

// Value is one entry of a [View].
type Value struct {
	Data       []byte
	Visibility Visibility
	// BootOnly marks user data: stock software needs it before the machine has a
	// key, and nobody but the key's holder does afterwards. See [Value.At].
	BootOnly bool
}

// At returns the visibility that counts while the machine's boot is open, or
// after it was closed. Hand it to [MayTravel].
func (v Value) At(closed bool) Visibility {
	if v.BootOnly && closed {
		return SecretOnly
	}
	return v.Visibility
}

// View is what a guest may read over one channel in its present state: names
// and ready bytes. It is rendered once when the instance changes; a request is
// a look-up. A View and the bytes in it are never changed after rendering.
type View struct {
	Revision int64 // of the instance that was rendered
	Rendered time.Time
	Values   map[string]Value
}

// Lookup returns the bytes of name, or false.
func (v *View) Lookup(name string) (Value, bool) {
	val, ok := v.Values[name]
	return val, ok
}
