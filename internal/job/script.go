package job

import "time"

// Script runs a script of an OS definition, as root of the VM with all that lets it
// make and mount file systems, in a cage that keeps the agent and its port from it.
type Script struct {
	// Archive is the index of the read-only disk that is a tar archive of the
	// definition's directory, and Size how many bytes of it count.
	Archive int   `json:"archive"`
	Size    int64 `json:"size"`
	// Program is the name of the script in there.
	Program string   `json:"program"`
	Args    []string `json:"args,omitempty"`
	// Env is its environment. The values of Secret are names of the job's secrets, which
	// come into the environment; those of SecretFiles likewise, but the variable has the
	// path of a file in memory. Disks are indexes of disks, and the variable has the
	// path of the device.
	Env         []string          `json:"env,omitempty"`
	Secret      map[string]string `json:"secret,omitempty"`
	SecretFiles map[string]string `json:"secretFiles,omitempty"`
	Disks       map[string]int    `json:"disks,omitempty"`
	// Pipe and Socket are streams to the script's other half on the host; "" is none.
	Pipe   string `json:"pipe,omitempty"`
	Socket string `json:"socket,omitempty"`
	// Stdin and Stdout are streams, for import and export; "" is empty, and the log.
	Stdin  string `json:"stdin,omitempty"`
	Stdout string `json:"stdout,omitempty"`
	// Programs, Files and Modules are what it needs of the host: see [Needs].
	Programs []string `json:"programs,omitempty"`
	Files    []string `json:"files,omitempty"`
	Modules  []string `json:"modules,omitempty"`

	// TimeLimit ends it, 0 after an hour; MaxOutput and MaxProcesses bound what it prints
	// and how many processes it has at once, 0 to a default.
	TimeLimit    time.Duration `json:"timeLimit,omitempty"`
	MaxOutput    int64         `json:"maxOutput,omitempty"`
	MaxProcesses int           `json:"maxProcesses,omitempty"`
}

// Needs implements the interface of a task's kinds. A shell and what every script uses
// are always there.
func (s *Script) Needs() Needs {
	return Needs{Programs: append(scriptPrograms(), s.Programs...), Files: s.Files, Modules: s.Modules}
}

func scriptPrograms() []string {
	return []string{
		"sh", "bash", "awk", "basename", "blkid", "blockdev", "cat", "chmod", "chown", "chroot", "cp", "cut", "date", "dd", "df", "dirname",
		"echo", "env", "expr", "false", "find", "getopt", "grep", "fgrep", "egrep", "gzip", "head", "id", "install", "ln", "losetup", "ls", "mkdir", "mke2fs",
		"mkfs.ext4", "mknod", "mkswap", "mktemp", "mount", "mv", "od", "printf", "readlink", "realpath", "rm", "rmdir", "run-parts", "sed", "seq", "sfdisk",
		"sleep", "sort", "stat", "sync", "tail", "tar", "tee", "test", "touch", "tr", "true", "truncate", "udevadm", "umount", "uname", "uniq", "wc",
		"which", "xargs",
	}
}

// Ran is what came of a [Script].
type Ran struct {
	Status int `json:"status"` // exit status of the script; -1 if a signal ended it
}
