package job

// Zero is a task of that kind.
type Zero struct{}

// Needs implements the interface of a task's kinds.
func (*Zero) Needs() Needs { return Needs{} }

// Zeroed is what came of a [Zero].
type Zeroed struct{}
