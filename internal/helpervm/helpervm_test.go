package helpervm

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"imprint"
	"imprint/internal/cpio"
	"imprint/internal/job"
	"imprint/internal/platform/qemu"
	"imprint/test/need"
)

func write(t *testing.T, path string, data []byte) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// zstdOf and gzipOf compress.
func zstdOf(b []byte) []byte {
	w, _ := zstd.NewWriter(nil)
	return w.EncodeAll(b, nil)
}

func gzipOf(b []byte) []byte {
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	w.Write(b)
	w.Close()
	return out.Bytes()
}

func TestModulesLoadInOrder(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, dir+"/modules.dep", []byte(`kernel/virtio_ring.ko.zst:
kernel/virtio.ko.gz: kernel/virtio_ring.ko.zst
kernel/virtio_blk.ko: kernel/virtio.ko.gz kernel/virtio_ring.ko.zst
kernel/fs/btrfs.ko: kernel/raid6-pq.ko
kernel/raid6-pq.ko:
kernel/xxhash_generic.ko: kernel/xxhash.ko
kernel/xxhash.ko:
`))
	write(t, dir+"/modules.builtin", []byte("kernel/fs/ext4.ko\n"))
	write(t, dir+"/modules.alias", []byte("alias xxhash64 xxhash_generic\nalias pci:v1* other\n"))
	write(t, dir+"/modules.softdep", []byte("softdep btrfs pre: xxhash64 sha256 post: virtio\n"))
	write(t, dir+"/kernel/virtio_ring.ko.zst", zstdOf([]byte("ring")))
	write(t, dir+"/kernel/virtio.ko.gz", gzipOf([]byte("virtio")))
	write(t, dir+"/kernel/virtio_blk.ko", []byte("blk"))
	m, err := openModules(dir)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"virtio_blk": "virtio_ring virtio virtio_blk",
		"virtio-blk": "virtio_ring virtio virtio_blk",
		"btrfs":      "?xxhash ?xxhash_generic raid6_pq btrfs",
		"ext4":       "",
	} {
		if got, ok := m.order(name); !ok || strings.Join(got, " ") != want {
			t.Errorf("%s: %q, %v", name, got, ok)
		}
	}
	if _, ok := m.order("xfs"); ok {
		t.Error("there is xfs")
	}
	for name, want := range map[string]string{"virtio_ring": "ring", "virtio": "virtio", "virtio_blk": "blk"} {
		if b, err := m.read(name); string(b) != want {
			t.Errorf("%s: %q, %v", name, b, err)
		}
	}
	if _, err := openModules(t.TempDir()); imprint.KindOf(err) != imprint.NotFound {
		t.Errorf("%v", err)
	}
}

func TestFindKernel(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	if _, err := findKernel(root, "6.1"); imprint.KindOf(err) != imprint.NotFound || imprint.HintOf(err) == "" {
		t.Errorf("%v", err)
	}
	for i, abi := range []string{"6.1", "6.12", "7.0"} {
		image := write(t, filepath.Join(root, "boot", "vmlinuz-"+abi), nil)
		os.Chtimes(image, time.Time{}, time.Unix(int64(1000+i), 0))
		if abi != "7.0" { // it has no modules
			write(t, filepath.Join(root, "lib/modules", abi, "modules.dep"), nil)
		}
	}
	for running, want := range map[string]string{"6.1": "6.1", "7.0": "6.12", "5.0": "6.12", "": "6.12"} {
		k, err := findKernel(root, running)
		if err != nil || k.Image != filepath.Join(root, "boot", "vmlinuz-"+want) || k.Modules != filepath.Join(root, "lib/modules", want) {
			t.Errorf("%q: %v, %v", running, k, err)
		}
	}
}

// What was copied runs where nothing else is.
func TestToolsRunAlone(t *testing.T) {
	t.Parallel()
	need.Root(t)
	program := need.Program(t, "sfdisk", "fdisk")
	archive := need.Program(t, "cpio", "cpio")
	var b bytes.Buffer
	a := cpio.NewWriter(&b)
	tools := newTools(a)
	for name, want := range map[string]bool{filepath.Base(program): true, "no-such-program": false} {
		if found, err := tools.program(name); err != nil || found != want {
			t.Errorf("%s: %v, %v", name, found, err)
		}
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	unpack := exec.Command(archive, "-id", "--quiet")
	unpack.Dir, unpack.Stdin = root, &b
	if out, err := unpack.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if out, err := exec.Command("chroot", root, program, "--version").CombinedOutput(); err != nil || !strings.Contains(string(out), "util-linux") {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestSlots(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "run")
	var taken []*slot
	for i := range MaxRunning {
		s, err := takeSlot(dir, VM{Instance: fmt.Sprintf("web-%02d", i), PID: 7, MemoryMiB: 512})
		if err != nil {
			t.Fatal(err)
		}
		taken = append(taken, s)
	}
	_, err := takeSlot(dir, VM{})
	if imprint.KindOf(err) != imprint.Exhausted || !strings.Contains(err.Error(), "16 of 16 run: web-00, web-01") {
		t.Errorf("%v", err)
	}
	taken[3].started(99)
	list, err := Running(dir)
	if err != nil || len(list) != MaxRunning || list[3].Instance != "web-03" || list[3].QEMU != 99 {
		t.Errorf("%v, %v", list, err)
	}
	taken[5].release()
	if s, err := takeSlot(dir, VM{Instance: "next"}); err != nil || s.f.Name() != taken[5].f.Name() {
		t.Errorf("the slot that was given back is not taken: %v", err)
	}
	if list, err := Running(t.TempDir()); err != nil || len(list) != 0 {
		t.Errorf("%v, %v", list, err)
	}
}

// A directory that others made, or can write to, accounts for nothing.
func TestSlotsOfOthers(t *testing.T) {
	t.Parallel()
	open, link := t.TempDir(), filepath.Join(t.TempDir(), "link")
	if err := errors.Join(os.Chmod(open, 0o777), os.Symlink(t.TempDir(), link)); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{open, link} {
		if _, err := takeSlot(dir, VM{}); imprint.KindOf(err) != imprint.Denied {
			t.Errorf("%s: %v", dir, err)
		}
	}
}

// Nothing of the host is named in QEMU's arguments, and there is no network unless asked.
func TestArguments(t *testing.T) {
	t.Parallel()
	v := &vm{
		accel: qemu.TCG, machine: qemu.Microvm, memory: 512, cpus: 2, tsc: 2600000, kernel: "/kernel", initrd: "/initrd",
		console: 3, port: 4, streams: []streamPort{{"data", 5}}, disks: []diskFD{{fd: 6, block: true}, {fd: 7, ro: true}},
	}
	line := strings.Join(v.args(), "\n")
	for _, want := range []string{
		"-sandbox\non,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny", "tsc_early_khz=2600000",
		"fd=6,set=1", "fd=7,set=2", `"driver":"host_device"`, `"read-only":true`, "serial=imprint-disk-1", "name=org.imprint.stream.data",
	} {
		if !strings.Contains(line, want) {
			t.Errorf("%q is missing in\n%s", want, line)
		}
	}
	for _, word := range v.args() {
		if strings.HasPrefix(word, "/") && word != "/kernel" && word != "/initrd" {
			t.Errorf("it names %s", word)
		}
	}
	if strings.Contains(line, "netdev") {
		t.Error("it has a network")
	}
	v.machine, v.network = qemu.Q35, true
	line = strings.Join(v.args(), "\n")
	if !strings.Contains(line, "netdev") || !strings.Contains(line, "virtio-blk-pci") || strings.Contains(line, "tsc_early_khz") {
		t.Error(line)
	}
}

func TestConsole(t *testing.T) {
	t.Parallel()
	var more bytes.Buffer
	c := newConsole(&more, scrubber(map[string]imprint.Secret{"p": imprint.NewSecret([]byte("correct horse\nbattery"))}))
	io.WriteString(c, "one\r\ntwo \x1b[2J\nsaid correct ")
	io.WriteString(c, "horse\nbattery\nlast")
	if got := c.last(); got != "said [redacted]; [redacted]; last" {
		t.Errorf("%q", got)
	}
	if got := more.String(); got != "one\ntwo \uFFFD[2J\nsaid [redacted]\n[redacted]\n" {
		t.Errorf("%q", got)
	}
	for range 300_000 {
		io.WriteString(c, "0123456789")
	}
	if more.Len() > maxConsole+job.MaxLine || len(c.ring) != consoleKept {
		t.Errorf("%d and %d bytes are kept", more.Len(), len(c.ring))
	}
	io.WriteString(c, "\nreason\nKernel panic - not syncing: x\nCPU: 0\nRIP: 0\n")
	if got := c.last(); !strings.HasSuffix(got, "reason; Kernel panic - not syncing: x") {
		t.Errorf("%q", got)
	}
}

func TestConfig(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		c    Config
		kind imprint.Kind
	}{
		"little memory": {Config{MemoryMiB: 1}, imprint.Invalid},
		"many disks":    {Config{Disks: make([]Disk, MaxDisks+1)}, imprint.Invalid},
		"a stream":      {Config{Streams: map[string]Stream{"../x": {}}}, imprint.Invalid},
		"a machine":     {Config{Machine: "q35,x"}, imprint.Invalid},
		"no QEMU":       {Config{QEMU: "no-such-program"}, imprint.NotFound},
	} {
		if err := tt.c.complete(); imprint.KindOf(err) != tt.kind {
			t.Errorf("%s: %v", name, err)
		}
	}
	dir := t.TempDir()
	odd := write(t, dir+"/odd", []byte("x"))
	if _, err := openDisks([]Disk{{Path: odd}}); imprint.KindOf(err) != imprint.Invalid {
		t.Errorf("half a sector: %v", err)
	}
	if _, err := openDisks([]Disk{{Path: dir + "/none", ReadOnly: true}}); imprint.KindOf(err) != imprint.NotFound {
		t.Errorf("%v", err)
	}
	if _, err := openDisks([]Disk{{}}); imprint.KindOf(err) != imprint.Invalid {
		t.Errorf("%v", err)
	}
	if _, err := newCgroup(dir, &vm{memory: 512, cpus: 1}); err != nil { // any directory can be written to
		t.Fatal(err)
	}
	made, _ := filepath.Glob(dir + "/helpervm-*")
	if len(made) != 1 {
		t.Fatalf("%q", made)
	}
	for file, want := range map[string]string{"memory.max": fmt.Sprint((512 + overhead + tbSize) << 20), "cpu.max": "100000 100000", "pids.max": "256"} {
		if b, err := os.ReadFile(filepath.Join(made[0], file)); string(b) != want {
			t.Errorf("%s is %q, %v", file, b, err)
		}
	}
}

// bzImage is the header of one around a payload.
func bzImage(payload []byte, size int) []byte {
	b := make([]byte, 1024)
	b[0x1f1] = 1
	copy(b[0x202:], "HdrS")
	binary.LittleEndian.PutUint16(b[0x206:], 0x20f)
	binary.LittleEndian.PutUint32(b[0x24c:], uint32(len(payload)+4))
	return binary.LittleEndian.AppendUint32(append(b, payload...), uint32(size))
}

func TestUnpackKernel(t *testing.T) {
	t.Parallel()
	kernel := bytes.Repeat([]byte("vmlinux "), 1000)
	packed := gzipOf(kernel)
	for name, image := range map[string][]byte{"zstd": bzImage(zstdOf(kernel), len(kernel)), "gzip": bzImage(packed[:len(packed)-4], len(kernel))} {
		if got, err := unpackKernel(image); err != nil || !bytes.Equal(got, kernel) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
	}
	if path := unpacked(write(t, t.TempDir()+"/vmlinuz", bzImage(zstdOf(kernel), len(kernel))), t.TempDir()); path != "" {
		t.Error("what QEMU cannot enter was kept")
	}
	if _, err := unpackKernel([]byte("MZ")); err == nil {
		t.Error("no kernel is one")
	}
}

func FuzzUnpackKernel(f *testing.F) {
	f.Add(bzImage(zstdOf([]byte("kernel")), 6))
	f.Add(bzImage([]byte("\x02\x21\x4c\x18\x01\x00\x00\x00x"), 6))
	f.Add(bzImage(nil, 1<<31))
	f.Fuzz(func(t *testing.T, b []byte) {
		if kernel, err := unpackKernel(b); err == nil {
			hasPVH(kernel)
		}
		hasPVH(b)
	})
}

// session plays a guest that sends the messages, and returns how the host took them.
func play(t *testing.T, j *job.Job, messages ...*job.Message) (*job.Result, error) {
	t.Helper()
	w, err := newWire("job")
	if err != nil {
		t.Fatal(err)
	}
	defer w.ours.Close()
	go func() {
		defer w.theirs.Close()
		guest := job.NewConn(w.theirs)
		if guest.Send(messages[0]) != nil {
			return
		}
		if _, err := job.ReceiveJob(guest); err != nil {
			return
		}
		for _, m := range messages[1:] {
			guest.Send(m)
		}
	}()
	s := &session{conn: job.NewConn(w.ours), job: j, begin: time.Now(), clean: scrubber(j.Secrets), c: &Config{}}
	return s.run()
}

// Only a whole result of this very job counts.
func TestOnlyTheResultCounts(t *testing.T) {
	t.Parallel()
	j := &job.Job{Version: job.Version, Nonce: "right", Tasks: []job.Task{{Zero: &job.Zero{}}, {Name: "second", Zero: &job.Zero{}}}}
	hello := &job.Message{Hello: &job.Hello{Version: job.Version}}
	both := []job.Outcome{{Name: "zero"}, {Name: "second"}}
	result := func(r job.Result) *job.Message { return &job.Message{Result: &r} }
	if r, err := play(t, j, hello, &job.Message{Log: &job.Log{Line: "x"}}, result(job.Result{Nonce: "right", Tasks: both})); err != nil || r.Fault != nil {
		t.Errorf("%v, %v", r, err)
	}
	failed := job.Result{Nonce: "right", Tasks: both[:1], Fault: &job.Fault{Kind: "exhausted", Op: "zero\x1b", Cause: "full"}}
	if r, err := play(t, j, hello, result(failed)); err != nil || r.Fault.Op != "zero\uFFFD" || imprint.KindOf(r.Fault.Err()) != imprint.Exhausted {
		t.Errorf("%v, %v", r, err)
	}
	for name, messages := range map[string][]*job.Message{
		"the wrong nonce":         {hello, result(job.Result{Nonce: "wrong", Tasks: both})},
		"no nonce":                {hello, result(job.Result{Tasks: both})},
		"a task too few":          {hello, result(job.Result{Nonce: "right", Tasks: both[:1]})},
		"a task too many":         {hello, result(job.Result{Nonce: "right", Tasks: append(slices.Clone(both), both[0]), Fault: &job.Fault{}})},
		"another task":            {hello, result(job.Result{Nonce: "right", Tasks: []job.Outcome{{Name: "zero"}, {Name: "third"}}})},
		"a result at once":        {result(job.Result{Nonce: "right", Tasks: both})},
		"another version":         {{Hello: &job.Hello{Version: job.Version + 1}}},
		"a job in the wrong way":  {hello, {Job: &job.Job{}}},
		"nothing more":            {hello},
		"progress and no more":    {hello, {Progress: &job.Progress{Task: "zero", Done: -1}}},
		"a second greeting later": {hello, hello},
	} {
		if r, err := play(t, j, messages...); err == nil || r != nil {
			t.Errorf("%s: %v, %v", name, r, err)
		}
	}
}

// What a guest says that it did is the guest's word as well: it controls no terminal, and
// shows no secret.
func TestWhatWasDoneIsClean(t *testing.T) {
	t.Parallel()
	const hostile = "\x1b]0;owned\a correct horse"
	j := &job.Job{Version: job.Version, Nonce: "right", Tasks: []job.Task{{Repair: &job.Repair{}}, {Unpack: &job.Unpack{}}, {Zero: &job.Zero{}}},
		Secrets: map[string]imprint.Secret{"s": imprint.NewSecret([]byte("correct horse"))}}
	r, err := play(t, j, &job.Message{Hello: &job.Hello{Version: job.Version}}, &job.Message{Result: &job.Result{Nonce: "right", Tasks: []job.Outcome{
		{Name: "repair", Repair: &job.Repaired{System: hostile, Did: []string{hostile}, Warnings: []string{hostile}, Loader: &job.Loader{Title: hostile, PartUUID: hostile, Path: hostile}}},
		{Name: "unpack", Unpack: &job.Unpacked{Directories: []string{hostile}}},
		{Name: "zero", Zero: &job.Zeroed{Volumes: []job.ZeroedVolume{{Type: hostile, Skipped: hostile}}}},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(r.Tasks)
	if err != nil || bytes.Contains(b, []byte(`\u001b`)) || bytes.Contains(b, []byte(`\u0007`)) || bytes.Contains(b, []byte("horse")) {
		t.Errorf("%s, %v", b, err)
	}
}

// Of two secrets of which one begins the other nothing is shown, whichever comes first.
func TestOneSecretBeginsAnother(t *testing.T) {
	t.Parallel()
	secrets := map[string]imprint.Secret{}
	for n := 4; n < 12; n++ {
		secrets[fmt.Sprint(n)] = imprint.NewSecret([]byte("abcdefghijkl"[:n]))
	}
	for range 20 { // a map has no order
		if got := scrubber(secrets).Replace("<abcdefghijk>"); strings.ContainsAny(got, "bfghijk") {
			t.Fatalf("shown: %s", got)
		}
	}
}
