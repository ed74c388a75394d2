package job

// Repair is a task of that kind.
type Repair struct{}

// Needs implements the interface of a task's kinds.
func (*Repair) Needs() Needs { return Needs{} }

// Repaired is what came of a [Repair].
type Repaired struct{}
