package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"time"

	"github.com/spf13/cobra"

	"imprint"
	"imprint/internal/helpervm"
	"imprint/internal/platform/qemu"
)

// finding is one line of the doctor's report.
type finding struct {
	What   string `json:"what"`
	OK     bool   `json:"ok"`
	Detail string `json:"detail,omitempty"`
	Remedy string `json:"remedy,omitempty"`
}

func (p *program) doctorCommand() *cobra.Command {
	var kernel string
	c := &cobra.Command{
		Use:   "doctor",
		Short: "Say what is missing on this machine, and how to get it",
		Long: `Say what is missing on this machine, and how to get it. The exit status is 0 if
the server answers, machines can be booted here, and their disks be installed and
repaired in helper VMs, of which it says how many run and for whom.`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			list := p.examine(c.Context(), kernel)
			if err := p.print(list, func(w io.Writer) {
				for _, f := range list {
					mark := "ok"
					if !f.OK {
						mark = "missing"
					}
					row(w, mark, f.What, f.Detail)
				}
			}); err != nil {
				return err
			}
			var first *finding
			for i := range list {
				if !list[i].OK {
					fmt.Fprintf(p.err, "%s: %s\n", list[i].What, list[i].Remedy)
					if first == nil {
						first = &list[i]
					}
				}
			}
			if first != nil {
				return imprint.Errorf(imprint.Unavailable, "examine", "this machine", "%s is missing", first.What)
			}
			return nil
		},
	}
	c.Flags().StringVar(&kernel, "kernel", "", "also check that this kernel can be booted")
	c.MarkFlagFilename("kernel")
	return c
}

func (p *program) examine(ctx context.Context, kernel string) []finding {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	client := p.client()
	defer client.Close()
	var list []finding

	server := finding{What: "server", Remedy: "start one with: imprint serve"}
	if info, err := client.Info(ctx); err == nil {
		server.OK, server.Detail = true, fmt.Sprintf("%s %s, you are %s (%s)", info.Host, info.Version, info.Caller, info.Role)
	} else {
		server.Detail = err.Error()
		if hint := imprint.HintOf(err); hint != "" {
			server.Remedy = hint
		}
	}
	list = append(list, server)

	missing := map[string]qemu.Finding{}
	for _, f := range qemu.Check(kernel) {
		missing[f.Name] = f
	}
	names := []string{qemu.Program, "busybox"}
	if kernel != "" {
		names = append(names, kernel)
	}
	for _, name := range names {
		f, bad := missing[name]
		one := finding{What: name, OK: !bad, Detail: f.Problem, Remedy: f.Remedy}
		if path, err := exec.LookPath(name); err == nil && !bad {
			one.Detail = path
		}
		list = append(list, one)
	}

	accel := finding{What: "acceleration", OK: true, Detail: "TCG: slow, but it works everywhere"}
	if _, err := os.Stat("/dev/kvm"); err == nil && kernel != "" {
		if a, err := (qemu.Probe{Kernel: kernel}).Accel(ctx); err == nil && a == qemu.KVM {
			accel.Detail = "KVM"
		} else {
			accel.Detail = "TCG: /dev/kvm exists, but guests do not run under it"
		}
	}
	list = append(list, accel)
	for _, c := range helpervm.Check(ctx) {
		list = append(list, finding{What: c.Name, OK: !c.Missing, Detail: c.Detail, Remedy: c.Remedy})
	}
	return list
}
