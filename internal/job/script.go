package job

// Script is a task of that kind.
type Script struct{}

// Needs implements the interface of a task's kinds.
func (*Script) Needs() Needs { return Needs{} }

// Ran is what came of a [Script].
type Ran struct{}
