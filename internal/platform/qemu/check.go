package qemu

import (
	"os"
	"os/exec"
)

// Finding is something that this machine lacks, and the remedy.
type Finding struct {
	Name    string // what is missing
	Problem string // what that prevents
	Remedy  string // a command that cures it
}

// Check returns what is missing on this machine to boot a guest from kernel,
// which may be "" if the caller has yet to choose one. Nothing missing is nil.
func Check(kernel string) []Finding {
	var missing []Finding
	for _, p := range []struct{ name, problem, pkg string }{
		{Program, "no virtual machine can be booted", "qemu-system-x86"},
		{"busybox", "the demonstration's guest cannot be built", "busybox-static"},
	} {
		if _, err := exec.LookPath(p.name); err != nil {
			missing = append(missing, Finding{p.name, p.problem, "apt-get install " + p.pkg})
		}
	}
	if kernel == "" {
		return missing
	}
	if f, err := os.Open(kernel); err == nil {
		f.Close()
	} else {
		missing = append(missing, Finding{kernel, "there is no kernel to boot: " + err.Error(), "apt-get install linux-image-cloud-amd64"})
	}
	return missing
}
