package helpervm

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"

	"imprint/internal/platform/qemu"
)

// Condition is something that helper VMs need or have on this host.
type Condition struct {
	Name    string
	Detail  string // what there is, or what is wrong
	Missing bool
	Remedy  string // a command that cures it, or ""
}

// Check returns what helper VMs need on this host, and what there is of it.
func Check(ctx context.Context) []Condition {
	var list []Condition
	if k, err := FindKernel(); err == nil {
		list = append(list, Condition{Name: "helper VM's kernel", Detail: k.Image})
	} else {
		list = append(list, Condition{Name: "helper VM's kernel", Detail: err.Error(), Missing: true, Remedy: "apt-get install linux-image-cloud-amd64"})
	}
	if path, err := FindProgram(Program); err == nil {
		list = append(list, Condition{Name: Program, Detail: path})
	} else {
		list = append(list, Condition{Name: Program, Detail: err.Error(), Missing: true, Remedy: "put it beside imprint: make build"})
	}
	if program, err := exec.LookPath(qemu.Program); err == nil {
		detail := "microvm"
		if machineType(ctx, program) != qemu.Microvm {
			detail = "q35, which starts more slowly: this QEMU has no microvm"
		}
		list = append(list, Condition{Name: "helper VM's machine", Detail: detail})
	}
	cage := "QEMU runs as you, in namespaces of its own where this host allows them; as root it runs as nobody"
	if os.Geteuid() == 0 {
		c := credential(qemu.TCG)
		cage = fmt.Sprintf("QEMU runs as user %d, in namespaces and a root directory of its own", c.Uid)
	}
	list = append(list, Condition{Name: "helper VM's cage", Detail: cage})
	if running, err := Running(RunDir()); err == nil {
		list = append(list, Condition{Name: "helper VMs", Detail: summary(running)})
	}
	return list
}

// summary says for whom helper VMs run.
func summary(list []VM) string {
	if len(list) == 0 {
		return fmt.Sprintf("none run, %d may", MaxRunning)
	}
	var whose []string
	for _, v := range list {
		whose = append(whose, v.Instance)
	}
	slices.Sort(whose)
	return fmt.Sprintf("%d of %d run: %s", len(list), MaxRunning, strings.Join(whose, ", "))
}

// machineType is the quickest that a QEMU has. Distributions that build one without
// microvm have q35.
func machineType(ctx context.Context, program string) qemu.Type {
	out, err := exec.CommandContext(ctx, program, "-machine", "help").Output()
	if err == nil && !strings.Contains("\n"+string(out), "\nmicrovm ") {
		return qemu.Q35
	}
	return qemu.Microvm
}
