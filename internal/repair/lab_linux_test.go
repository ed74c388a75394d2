package repair_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"imprint"
	"imprint/internal/disk"
	"imprint/internal/repair"
	"imprint/test/need"
)

const mib = 1 << 20

// Tests with devices do not run in parallel: until a child that one of them forks has
// become another program it has the files of all, by which others' filesystems are busy.

// surroundings are those of a test: this host instead of a helper VM.
type surroundings struct {
	mu  sync.Mutex
	log bytes.Buffer
	// stop is called at the step of that number, of which log lines are the measure.
	stop  func()
	after int
}

func (s *surroundings) Modprobe(name string) error {
	b, _ := os.ReadFile("/proc/filesystems")
	if slices.Contains(strings.Fields(string(b)), name) || name == "loop" {
		return nil
	}
	return imprint.Errorf(imprint.NotFound, "load", "kernel module "+name, "this host has none")
}

func (s *surroundings) Logf(format string, args ...any) {
	fmt.Fprintf(s.Log(), format+"\n", args...)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.after--; s.after == 0 && s.stop != nil {
		s.stop()
	}
}

func (s *surroundings) Log() io.Writer                { return (*logged)(s) }
func (s *surroundings) Progress(int64, int64, string) {}

type logged surroundings

func (l *logged) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.log.Write(b)
}

// env is surroundings whose log a failed test shows.
func env(t *testing.T) *surroundings {
	s := &surroundings{}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("log:\n%s", s.log.String())
		}
	})
	return s
}

// noGuest is for repairs that run nothing of the system's.
func noGuest(_ context.Context, _ string, _ io.Writer, argv ...string) error {
	return fmt.Errorf("%v was not expected", argv)
}

// run runs a program and returns its output.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	packages := map[string]string{
		"mkfs.ext4": "e2fsprogs", "blockdev": "util-linux", "e2fsck": "e2fsprogs", "mkfs.xfs": "xfsprogs", "xfs_repair": "xfsprogs", "xfs_db": "xfsprogs", "mkfs.btrfs": "btrfs-progs", "btrfs": "btrfs-progs",
		"btrfstune": "btrfs-progs", "sfdisk": "fdisk", "losetup": "mount", "blkid": "util-linux", "mount": "mount", "umount": "mount", "mkswap": "util-linux", "mkfs.vfat": "dosfstools",
	}
	cmd := exec.Command(need.Program(t, name, packages[name]), args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// image makes a raw image that sfdisk partitions; "" leaves it without a table.
func image(t *testing.T, size int64, table string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.raw")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	f.Close()
	if table != "" {
		cmd := exec.Command(need.Program(t, "sfdisk", "fdisk"), "--quiet", path)
		cmd.Stdin = strings.NewReader(table)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("sfdisk: %v\n%s", err, out)
		}
	}
	return path
}

// attach makes a block device of an image, with its partitions, until the test or
// the returned function ends it.
func attach(t *testing.T, path string) (device string, detach func()) {
	t.Helper()
	need.Root(t)
	device = strings.TrimSpace(run(t, "losetup", "--show", "--find", "--partscan", path))
	detach = sync.OnceFunc(func() { run(t, "losetup", "--detach", device) })
	t.Cleanup(detach)
	d, err := disk.Open(device)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	table, err := disk.Read(d, d.Size(), d.SectorSize())
	if err != nil {
		return device, detach // no table
	}
	for _, p := range table.Partitions {
		// The kernel of some hosts reads no partition tables.
		if _, err := os.Stat(fmt.Sprintf("%sp%d", device, p.Number)); err != nil {
			if err := d.Tell(p, true); err != nil {
				t.Fatal(err)
			}
		}
	}
	return device, detach
}

// format makes a filesystem.
func format(t *testing.T, kind, device string, options ...string) {
	t.Helper()
	args := map[string][]string{"ext4": {"-q", "-F"}, "xfs": {"-q", "-f"}, "btrfs": {"-q", "-f"}, "swap": {}}[kind]
	program := "mkfs." + kind
	if kind == "swap" {
		program = "mkswap"
	}
	run(t, program, slices.Concat(args, options, []string{device})...)
}

// with calls use with the path at which a filesystem is mounted.
func with(t *testing.T, device, options string, use func(dir string)) {
	t.Helper()
	dir := t.TempDir()
	args := []string{device, dir}
	if options != "" {
		args = append([]string{"-o", options}, args...)
	}
	run(t, "mount", args...)
	defer run(t, "umount", dir)
	use(dir)
}

// plant writes files, by path; a value that begins with "->" is a symbolic link.
func plant(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if target, ok := strings.CutPrefix(content, "->"); ok {
			err = os.Symlink(target, path)
		} else {
			err = os.WriteFile(path, []byte(content), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// tag returns a value that blkid reads from a device.
func tag(t *testing.T, device, name string) string {
	t.Helper()
	return strings.TrimSpace(run(t, "blkid", "-p", "-s", name, "-o", "value", device))
}

// sound fails the test unless the filesystem's own program finds nothing wrong.
func sound(t *testing.T, kind, device string) {
	t.Helper()
	switch kind {
	case "ext4":
		run(t, "e2fsck", "-f", "-n", device)
	case "xfs":
		run(t, "xfs_repair", "-n", device)
	case "btrfs":
		run(t, "btrfs", "check", device)
	}
}

// linux are the filesystems that a system may be on.
func linux() []string { return []string{"ext4", "xfs", "btrfs"} }

// least is the smallest size that mkfs takes, in MiB.
func least(kind string) int64 { return map[string]int64{"ext4": 64, "xfs": 300, "btrfs": 256}[kind] }

const osRelease = "PRETTY_NAME=\"Testix 1\"\nID=testix\n"

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

var _ repair.Env = (*surroundings)(nil)
