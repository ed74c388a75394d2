package job

import (
	"time"

	"imprint"
)

// Version is that of the protocol. Host and agent come from one build as a rule;
// if not, the agent refuses what it does not know.
const Version = 1

// PortName is the name of the virtio-serial port over which a job comes, and
// StreamPrefix begins the names of those that carry its streams.
const (
	PortName     = "org.imprint.job.0"
	StreamPrefix = "org.imprint.stream."
)

// DiskSerial is the serial number by which the guest knows the disk of an index,
// whatever letter its kernel gives it: the index in decimal behind it.
const DiskSerial = "imprint-disk-"

// Limits of a [Job].
const (
	MaxTasks   = 64
	MaxSecrets = 256
	MaxSecret  = 256 << 10 // bytes of one
	MaxStreams = 8
)

// Job is what one helper VM does before it ends: its tasks, in this order, until
// one fails.
type Job struct {
	Version int    `json:"version"` // set by who sends it
	Nonce   string `json:"nonce"`   // random, set by who sends it; the result repeats it
	Tasks   []Task `json:"tasks"`
	// Roots are the numbers of the partitions with the root filesystems of disks, by the
	// disks' index. One that is not in it has only one system.
	Roots map[int]int `json:"roots,omitempty"`
	// Secrets are the values that tasks name. They travel in frames of their own,
	// since JSON never shows one.
	Secrets map[string]imprint.Secret `json:"-"`
}

// Task is one step. Exactly one of its kinds is not nil.
type Task struct {
	// Name is what people know the step by in progress, log and errors; "" is the kind's.
	Name string `json:"name,omitempty"`
	// TimeLimit ends the task, and with it the job, with kind [imprint.Exhausted]; 0 is the VM's own.
	TimeLimit time.Duration `json:"timeLimit,omitempty"`

	Unpack *Unpack `json:"unpack,omitempty"`
	Repair *Repair `json:"repair,omitempty"`
	Zero   *Zero   `json:"zero,omitempty"`
	Script *Script `json:"script,omitempty"`
}

// Kind returns the name of the kind that is set, or "".
func (t *Task) Kind() string {
	kind, _ := t.kind()
	return kind
}

// String returns what people know the task by.
func (t *Task) String() string {
	if t.Name != "" {
		return t.Name
	}
	return t.Kind()
}

// Needs is what a task wants to find in the VM beside the agent.
type Needs struct {
	// Programs are the host's programs, by name; they come with the libraries that
	// they load. One that the host lacks is left out: the task says so if it comes to that.
	Programs []string
	// Files are more of the host's files or directories, by absolute path, such as a
	// program's data. One that does not exist is left out.
	Files []string
	// Modules are kernel modules, by name, that the guest loads when a task asks for
	// them; those of the disks are always there. What the kernel has built in, or does not have, is left out.
	Modules []string
}

// Needs returns what the job's tasks want to find.
func (j *Job) Needs() Needs {
	var all Needs
	for i := range j.Tasks {
		if _, k := j.Tasks[i].kind(); k != nil {
			n := k.Needs()
			all.Programs = append(all.Programs, n.Programs...)
			all.Files = append(all.Files, n.Files...)
			all.Modules = append(all.Modules, n.Modules...)
		}
	}
	return all
}

// kind is one of a task's kinds.
type kind interface{ Needs() Needs }

func (t *Task) kind() (name string, k kind) {
	n := 0
	set := func(s string, is bool, v kind) {
		if is {
			name, k = s, v
			n++
		}
	}
	set("unpack", t.Unpack != nil, t.Unpack)
	set("repair", t.Repair != nil, t.Repair)
	set("zero", t.Zero != nil, t.Zero)
	set("script", t.Script != nil, t.Script)
	if n != 1 {
		return "", nil
	}
	return name, k
}

// Check fails with kind [imprint.Invalid] if j cannot be a job.
func (j *Job) Check() error {
	invalid := func(operand, format string, a ...any) error {
		return imprint.Errorf(imprint.Invalid, "check", operand, format, a...)
	}
	if len(j.Tasks) > MaxTasks {
		return invalid("job", "%d tasks; %d are allowed", len(j.Tasks), MaxTasks)
	}
	for i := range j.Tasks {
		if t := &j.Tasks[i]; t.Kind() == "" {
			return invalid("task "+t.Name, "it has to be of exactly one kind")
		}
	}
	if len(j.Secrets) > MaxSecrets {
		return invalid("job", "%d secrets; %d are allowed", len(j.Secrets), MaxSecrets)
	}
	for name, s := range j.Secrets {
		if len(s.Reveal()) > MaxSecret {
			return invalid("secret "+name, "it has %d bytes; %d are allowed", len(s.Reveal()), MaxSecret)
		}
	}
	return nil
}

// What the host puts into an initramfs and the agent finds there.
const (
	Marker     = "/etc/imprint/helpervm" // is there in a helper VM and nowhere else
	ModuleDir  = "/modules/"             // kernel modules, not compressed
	ModuleList = "/modules/list"         // a line for each that can be asked for: its name, and what to load in order

	// ModulesAtBoot is the name in the list under which what is loaded at once stands.
	// Names that begin with a question mark need not load.
	ModulesAtBoot = "boot"
)
