package qemu

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"imprint"
)

// AccelEnv is the environment variable that forces an accelerator: tcg or kvm.
const AccelEnv = "IMPRINT_ACCEL"

const (
	// probeTimeout is how long a kernel has under KVM to print its first line.
	// A working one needs a quarter of a second.
	probeTimeout = 2 * time.Second
	// probeBanner is how Linux begins to speak.
	probeBanner = "Linux version"
	// maxProbeRecord bounds the remembered answer, in bytes.
	maxProbeRecord = 4 << 10
)

// Probe finds out whether KVM works on this machine, by booting a kernel under
// it: on nested or restricted hosts /dev/kvm opens and the guest's first
// instructions run, but Linux hangs before it prints anything.
type Probe struct {
	Program string // the QEMU binary; "" is [Program] in PATH
	Kernel  string // the kernel to boot
	Device  string // "" is /dev/kvm
	Dir     string // where the answer is remembered until the host reboots; "" is the user's cache directory
}

// answer is the remembered outcome; it counts only for the same key.
type answer struct {
	Key   string `json:"key"`
	Accel Accel  `json:"accel"`
}

// Accel returns the accelerator to use. It never fails for want of KVM: the
// answer is then [TCG]. It fails with kind [imprint.Invalid] if the environment
// asks for one that does not exist, and with the context's error.
func (p Probe) Accel(ctx context.Context) (Accel, error) {
	switch forced := Accel(os.Getenv(AccelEnv)); forced {
	case TCG, KVM:
		return forced, nil
	case "":
	default:
		return "", imprint.Errorf(imprint.Invalid, "read", AccelEnv, "%q is neither tcg nor kvm", forced)
	}
	if p.Program == "" {
		p.Program = Program
	}
	if p.Device == "" {
		p.Device = "/dev/kvm"
	}
	f, err := os.OpenFile(p.Device, os.O_RDWR, 0)
	if err != nil {
		return TCG, nil
	}
	f.Close()
	key := p.key()
	if a, ok := p.recall(key); ok {
		return a, nil
	}
	a := TCG
	if p.works(ctx) {
		a = KVM
	}
	if err := ctx.Err(); err != nil {
		return "", err
	}
	p.remember(answer{key, a})
	return a, nil
}

// works boots the kernel under KVM, without a root file system, and reports
// whether it spoke in time.
func (p Probe) works(ctx context.Context) bool {
	m := Machine{
		Program: p.Program, Accel: KVM, MemoryMiB: 256, Kernel: p.Kernel,
		Append:  "console=ttyS0 earlyprintk=ttyS0 panic=-1",
		Console: Console{Kind: ConsoleStdio},
	}
	heard := &banner{heard: make(chan struct{})}
	proc, err := m.Start(ctx, Run{Timeout: probeTimeout, Stdout: heard})
	if err != nil {
		return false
	}
	select {
	case <-heard.heard:
	case <-proc.Done():
	}
	proc.Kill()
	<-proc.Done()
	return heard.spoken()
}

// banner closes heard once the guest has printed [probeBanner].
type banner struct {
	heard chan struct{}
	seen  []byte
}

func (b *banner) Write(p []byte) (int, error) {
	if !b.spoken() {
		if b.seen = append(b.seen, p...); bytes.Contains(b.seen, []byte(probeBanner)) {
			close(b.heard)
		}
	}
	return len(p), nil
}

func (b *banner) spoken() bool {
	select {
	case <-b.heard:
		return true
	default:
		return false
	}
}

// key identifies what the answer depends on: this boot of the host, the QEMU
// binary and the kernel.
func (p Probe) key() string {
	boot, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	key := strings.TrimSpace(string(boot))
	program, _ := exec.LookPath(p.Program)
	for _, name := range []string{program, p.Kernel} {
		info, err := os.Stat(name)
		if err != nil {
			return ""
		}
		key += fmt.Sprintf(" %s %d %d", name, info.Size(), info.ModTime().UnixNano())
	}
	return key
}

func (p Probe) file() (string, error) {
	dir := p.Dir
	if dir == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			return "", err
		}
		dir = filepath.Join(cache, "imprint")
	}
	return filepath.Join(dir, "accel.json"), nil
}

func (p Probe) recall(key string) (Accel, bool) {
	name, err := p.file()
	if err != nil || key == "" {
		return "", false
	}
	b, err := os.ReadFile(name)
	if err != nil || len(b) > maxProbeRecord {
		return "", false
	}
	var a answer
	if json.Unmarshal(b, &a) != nil || a.Key != key || a.Accel != TCG && a.Accel != KVM {
		return "", false
	}
	return a.Accel, true
}

// remember keeps the answer if it can: without it the next run probes again.
func (p Probe) remember(a answer) {
	name, err := p.file()
	if err != nil || a.Key == "" {
		return
	}
	b, err := json.Marshal(a)
	if err != nil || os.MkdirAll(filepath.Dir(name), 0o700) != nil {
		return
	}
	temp := fmt.Sprintf("%s.%d", name, os.Getpid())
	if os.WriteFile(temp, b, 0o600) == nil {
		os.Rename(temp, name)
	}
}
