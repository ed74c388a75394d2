package job

import (
	"errors"
	"time"

	"imprint"
)

// Result is how a job ended. It succeeded if Fault is nil.
type Result struct {
	Nonce string    `json:"nonce"`
	Tasks []Outcome `json:"tasks,omitempty"` // of those that were begun, in order
	Fault *Fault    `json:"fault,omitempty"`

	// Booted is how long after QEMU's start the agent began as PID 1, Ready how long
	// after it the agent asked for the job, and Took how long the whole took. The host
	// sets them; the first is as good as the guest's clock.
	Booted time.Duration `json:"-"`
	Ready  time.Duration `json:"-"`
	Took   time.Duration `json:"-"`
}

// Outcome is what came of one task. The field of its kind is set if the kind
// has anything to tell.
type Outcome struct {
	Name string        `json:"name"`
	Took time.Duration `json:"took"`

	Unpack *Unpacked `json:"unpack,omitempty"`
	Repair *Repaired `json:"repair,omitempty"`
	Zero   *Zeroed   `json:"zero,omitempty"`
	Script *Ran      `json:"script,omitempty"`
}

// Texts are all texts in it that people may be shown, but for its name.
func (o *Outcome) Texts() []*string {
	var all []*string
	add := func(list []string) {
		for i := range list {
			all = append(all, &list[i])
		}
	}
	if u := o.Unpack; u != nil {
		add(u.Directories)
	}
	if r := o.Repair; r != nil {
		all = append(all, &r.System)
		add(r.Did)
		add(r.Warnings)
		if l := r.Loader; l != nil {
			all = append(all, &l.Title, &l.PartUUID, &l.Path)
		}
	}
	if z := o.Zero; z != nil {
		for i := range z.Volumes {
			all = append(all, &z.Volumes[i].Type, &z.Volumes[i].Skipped)
		}
	}
	return all
}

// Fault is an [imprint.Error] on its way.
type Fault struct {
	Kind    string `json:"kind"`
	Op      string `json:"op"`
	Operand string `json:"operand,omitempty"`
	Cause   string `json:"cause,omitempty"`
	Hint    string `json:"hint,omitempty"`
}

// NewFault returns err as it travels; the innermost hint is kept. It is nil for nil.
func NewFault(err error) *Fault {
	if err == nil {
		return nil
	}
	var e *imprint.Error
	if !errors.As(err, &e) {
		return &Fault{Kind: imprint.Internal.String(), Op: "run", Operand: "task", Cause: err.Error()}
	}
	f := &Fault{Kind: e.Kind.String(), Op: e.Op, Operand: e.Operand, Hint: imprint.HintOf(err)}
	if e.Err != nil {
		f.Cause = e.Err.Error()
	}
	return f
}

// Err returns the error that f carries; nil for nil.
func (f *Fault) Err() error {
	if f == nil {
		return nil
	}
	e := &imprint.Error{Kind: imprint.ParseKind(f.Kind), Op: f.Op, Operand: f.Operand, Hint: f.Hint}
	if f.Cause != "" {
		e.Err = errors.New(f.Cause)
	}
	return e
}
