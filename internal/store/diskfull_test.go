package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"imprint"
)

// Children that run on a small disk of their own, in a mount namespace that
// ends with them.
const (
	childDiskFull = "disk-full" // fills the disk under a store, then makes room
	childDiskDies = "disk-dies" // fills the disk so suddenly that etcd stops
)

// TestDiskFull needs root for the small disk.
func TestDiskFull(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounting a small disk needs root")
	}
	for _, kind := range []string{childDiskFull, childDiskDies} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			child := exec.Command(os.Args[0], t.TempDir())
			child.Env = append(os.Environ(), childVariable+"="+kind)
			child.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
			if out, err := child.CombinedOutput(); err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}

// smallDisk is where etcd's log (two segments of 64 MiB) and little more fits.
const smallDisk = "size=200m"

func mountSmallDisk(dir string) error {
	return unix.Mount("none", dir, "tmpfs", 0, smallDisk)
}

// ballast fills the disk of dir and returns what makes room again.
func ballast(dir string) (remove func() error, err error) {
	path := filepath.Join(dir, "ballast")
	f, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if _, err := io.Copy(f, zeroes{}); !errors.Is(err, syscall.ENOSPC) {
		return nil, fmt.Errorf("filling the disk: %w", err)
	}
	return func() error { return os.Remove(path) }, nil
}

// zeroes never ends.
type zeroes struct{}

func (zeroes) Read(b []byte) (int, error) { clear(b); return len(b), nil }

// runDiskFull wants a store to refuse writes on a full disk, to go on reading,
// and to go on writing when there is room again.
func runDiskFull() {
	exit(func(ctx context.Context, dir string) error {
		s, err := OpenEmbedded(ctx, Embedded{Dir: filepath.Join(dir, "data"), Reserve: 8 << 20})
		if err != nil {
			return err
		}
		i := newInstance("full")
		if err := s.Create(ctx, i, nil, reserved()); err != nil {
			return err
		}
		room, err := ballast(dir)
		if err != nil {
			return err
		}
		_, err = s.Update(ctx, i.ID, to(imprint.Delivered, imprint.EventDelivered))
		if imprint.KindOf(err) != imprint.Exhausted || !strings.Contains(err.Error(), "disk") || imprint.HintOf(err) == "" {
			return fmt.Errorf("a write on a full disk: %v", err)
		}
		if got, err := s.Instance(ctx, i.ID); err != nil || got.Enrolment.State != imprint.Reserved {
			return fmt.Errorf("a read on a full disk: %+v, %v", got, err)
		}
		if err := room(); err != nil {
			return err
		}
		if _, err := s.Update(ctx, i.ID, to(imprint.Delivered, imprint.EventDelivered)); err != nil {
			return fmt.Errorf("after making room: %w", err)
		}
		return errors.Join(fitsTogether(ctx, s), s.Close())
	})
}

// runDiskDies lets etcd itself meet the full disk: the process must survive
// with a clear error, and nothing that was acknowledged may be lost.
func runDiskDies() {
	exit(func(ctx context.Context, dir string) error {
		data := filepath.Join(dir, "data")
		// The store is another process's, since it cannot be opened again in one
		// whose etcd stopped. It prints what is acknowledged, and its last error.
		writer := exec.Command(os.Args[0], data)
		writer.Env = append(os.Environ(), childVariable+"="+childDiskWriter)
		out, err := writer.Output()
		if err != nil {
			return fmt.Errorf("the writer: %w: %s", err, out)
		}
		lines := strings.Split(strings.TrimSpace(string(out)), "\n")
		if last := lines[len(lines)-1]; !strings.Contains(last, "exhausted: ") || !strings.Contains(last, "no space left on device") {
			return fmt.Errorf("the writer ended with: %s", last)
		}
		if err := os.Remove(filepath.Join(data, "ballast")); err != nil {
			return err
		}
		s, err := OpenEmbedded(ctx, Embedded{Dir: data, Reserve: 1 << 20})
		if err != nil {
			return fmt.Errorf("open after making room: %w", err)
		}
		for _, id := range lines[:len(lines)-1] {
			if _, err := s.Instance(ctx, imprint.InstanceID(id)); err != nil {
				return fmt.Errorf("of %d acknowledged: %w", len(lines)-1, err)
			}
		}
		return errors.Join(fitsTogether(ctx, s), s.Close())
	})
}

// childDiskWriter creates instances in the directory in its first argument,
// with a full disk soon after the start and no reserve, until that fails.
const childDiskWriter = "disk-writer"

func runDiskWriter() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	dir := os.Args[1]
	s, err := OpenEmbedded(ctx, Embedded{Dir: dir, Reserve: -1})
	for n := 0; err == nil; n++ {
		if n == 10 {
			if _, err := ballast(dir); err != nil {
				fmt.Println(err)
				os.Exit(1)
			}
		}
		i := newInstance(fmt.Sprintf("dies-%d", n))
		i.Spec.UserData = strings.Repeat("x", imprint.MaxUserData)
		if err = s.Create(ctx, i, nil, reserved()); err == nil {
			fmt.Println(i.ID)
		}
	}
	<-s.Failed()
	_, err = s.Instance(ctx, imprint.NewInstanceID())
	fmt.Printf("%v: %v\n", imprint.KindOf(err), err)
	if err := s.Close(); err == nil {
		fmt.Println("Close reports nothing")
	}
}

func fitsTogether(ctx context.Context, s *Store) error {
	faults, err := inconsistencies(s, func(q query) (page, error) { return s.kv.read(ctx, q) })
	if err == nil && len(faults) > 0 {
		err = errors.New(strings.Join(faults, "\n"))
	}
	return err
}

// exit runs a child on a small disk and ends the process.
func exit(run func(ctx context.Context, dir string) error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	dir := os.Args[1]
	err := mountSmallDisk(dir)
	if err == nil {
		err = run(ctx, dir)
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}
