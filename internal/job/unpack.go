package job

// Unpack is a task of that kind.
type Unpack struct{}

// Needs implements the interface of a task's kinds.
func (*Unpack) Needs() Needs { return Needs{} }

// Unpacked is what came of a [Unpack].
type Unpacked struct{}
