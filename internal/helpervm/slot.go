package helpervm

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"imprint"
)

// MaxRunning is how many helper VMs run at once on a host, whoever starts them.
const MaxRunning = 16

// maxSlotRecord is the size of a slot's file in bytes.
const maxSlotRecord = 1 << 10

// VM is a helper VM that runs.
type VM struct {
	Instance  string    `json:"instance,omitempty"` // for whom
	PID       int       `json:"pid"`                // of the program that started it
	QEMU      int       `json:"qemu,omitempty"`     // of the VM itself, once it runs
	Since     time.Time `json:"since"`
	MemoryMiB int       `json:"memoryMiB"`
	CPUs      int       `json:"cpus"`
}

// RunDir is where this host's helper VMs are accounted: one place for root, one
// for each other user.
func RunDir() string {
	if os.Geteuid() == 0 {
		return "/run/imprint/helpervm"
	}
	if dir := os.Getenv("XDG_RUNTIME_DIR"); dir != "" {
		return filepath.Join(dir, "imprint", "helpervm")
	}
	return filepath.Join(os.TempDir(), fmt.Sprintf("imprint-helpervm-%d", os.Geteuid()))
}

// A slot is a file that is locked for as long as a VM runs. The kernel lets go of it
// however the program ends that has it, and another VM takes the same file.
type slot struct {
	f  *os.File
	vm VM
}

// takeSlot fails with kind [imprint.Exhausted] if there is none.
func takeSlot(dir string, v VM) (*slot, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, openError(dir, err)
	}
	if err := own(dir); err != nil {
		return nil, err
	}
	for i := range MaxRunning {
		f, err := os.OpenFile(slotFile(dir, i), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return nil, openError(dir, err)
		}
		if lock(f) != nil {
			f.Close()
			continue
		}
		s := &slot{f, v}
		if err := s.write(); err != nil {
			f.Close()
			return nil, openError(f.Name(), err)
		}
		return s, nil
	}
	list, _ := Running(dir)
	return nil, imprint.Errorf(imprint.Exhausted, "start", "helper VM", "%s", summary(list)).
		WithHint("try again when one has ended")
}

// own fails with kind [imprint.Denied] if others could make what is in dir, and so say
// what runs and keep all slots taken: who has no directory of his own has one in /tmp.
func own(dir string) error {
	info, err := os.Lstat(dir)
	if err != nil {
		return openError(dir, err)
	}
	if st, ok := info.Sys().(*syscall.Stat_t); !info.IsDir() || info.Mode().Perm()&0o022 != 0 || ok && int(st.Uid) != os.Geteuid() {
		return imprint.Errorf(imprint.Denied, "use", dir, "it is not a directory that only you may write to").
			WithHint("remove it, or set XDG_RUNTIME_DIR to a directory of your own")
	}
	return nil
}

// started notes the VM's process.
func (s *slot) started(pid int) {
	s.vm.QEMU = pid
	s.write() // the lock is what counts
}

// write writes the record at once and in one length, so that nobody reads half of it.
func (s *slot) write() error {
	b, err := json.Marshal(s.vm)
	if err == nil {
		_, err = s.f.WriteAt(append(b, bytes.Repeat([]byte{' '}, max(0, maxSlotRecord-len(b)))...), 0)
	}
	return err
}

func (s *slot) release() {
	s.f.Truncate(0)
	s.f.Close()
}

func slotFile(dir string, i int) string { return filepath.Join(dir, fmt.Sprintf("slot-%02d", i)) }

func lock(f *os.File) error {
	return unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart})
}

// Running returns the helper VMs that are accounted in dir, as [RunDir] is.
func Running(dir string) ([]VM, error) {
	var list []VM
	for i := range MaxRunning {
		f, err := os.Open(slotFile(dir, i))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, openError(dir, err)
		}
		v, taken := readSlot(f)
		f.Close()
		if taken {
			list = append(list, v)
		}
	}
	return list, nil
}

func readSlot(f *os.File) (v VM, taken bool) {
	held := unix.Flock_t{Type: unix.F_RDLCK, Whence: io.SeekStart}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &held); err != nil || held.Type == unix.F_UNLCK {
		return v, false
	}
	b, err := io.ReadAll(io.LimitReader(f, maxSlotRecord))
	return v, err == nil && json.Unmarshal(b, &v) == nil
}
