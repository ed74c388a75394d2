//go:build vm

package vm_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"imprint"
	"imprint/internal/platform/qemu"
	"imprint/test/need"
)

// partitionStart is where the partition of a stick begins, in bytes.
const partitionStart = 1 << 20

// volumes make a labelled volume with one file on it, as an operator would.
var volumes = []struct {
	name string
	make func(t *testing.T, label, file, image string)
}{
	{"iso", func(t *testing.T, label, file, image string) {
		command(t, need.Program(t, "genisoimage", "genisoimage"), "-quiet", "-J", "-r", "-V", label, "-o", image, file)
	}},
	{"fat32", func(t *testing.T, label, file, image string) {
		command(t, need.Program(t, "mkfs.vfat", "dosfstools"), "-F", "32", "-n", label, "-C", image, "65536")
		command(t, need.Program(t, "mcopy", "mtools"), "-i", image, file, "::")
	}},
	// A USB stick has a partition table, and its one partition the label.
	{"stick", func(t *testing.T, label, file, image string) {
		if err := os.WriteFile(image, partitionTable(15<<20), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(image, 16<<20); err != nil {
			t.Fatal(err)
		}
		command(t, need.Program(t, "mkfs.vfat", "dosfstools"), "-n", label, "--offset", fmt.Sprint(partitionStart/512), image, fmt.Sprint(15<<10))
		command(t, need.Program(t, "mcopy", "mtools"), "-i", fmt.Sprintf("%s@@%d", image, partitionStart), file, "::")
	}},
}

// partitionTable is a master boot record with one FAT partition of size bytes.
func partitionTable(size uint32) []byte {
	b := make([]byte, 512)
	entry := b[446:]
	entry[4] = 0x0e // FAT16, by block number
	binary.LittleEndian.PutUint32(entry[8:], partitionStart/512)
	binary.LittleEndian.PutUint32(entry[12:], size/512)
	b[510], b[511] = 0x55, 0xaa
	return b
}

// The kernel finds a volume that nobody mounted, whatever its file system. The
// machine learns from it where to check in and with which token, and leaves
// the volume as it was.
func TestBirthFromAVolume(t *testing.T) {
	needQEMU(t)
	img := image(t, script(t, "volumes.sh"), "virtio_net", "isofs", "vfat", "nls_cp437", "nls_ascii")
	s := newServer(t, "--check-in", freeAddress(t))
	dir := t.TempDir()

	// The first volume is a stranger: it has a payload but not the label.
	id := s.create("name: other-1\n")
	payload := filepath.Join(dir, "payload.json")
	s.imprint(nil, "payload", "other-1", "--out", payload)
	disks := []qemu.Disk{{Path: filepath.Join(dir, "stranger.img"), Writable: true}}
	volumes[1].make(t, "STRANGER", payload, disks[0].Path)
	var private []string
	for _, v := range volumes {
		value := canary(v.name)
		private = append(private, value)
		s.create(fmt.Sprintf("name: %s-1\ndnsNames: [%[1]s-1.lab.internal]\nparams: {private: {db-password: {env: DB_PASSWORD}}}\n", v.name), "DB_PASSWORD="+value)
		if err := os.Remove(payload); err != nil {
			t.Fatal(err)
		}
		s.imprint(nil, "payload", v.name+"-1", "--out", payload)
		disk := filepath.Join(dir, v.name+".img")
		v.make(t, "IMPRINT", payload, disk)
		disks = append(disks, qemu.Disk{Path: disk, Writable: true})
	}
	before := digests(t, disks)

	m := enrolling(s, id, img)
	m.Disks = disks
	m.NICs = []qemu.NIC{{Open: true}}
	console := boot(t, m, 60*time.Second).poweredOff()

	if n := strings.Count(console, "guest: ended with status 0"); n != len(volumes) {
		t.Errorf("%d of %d machines enrolled", n, len(volumes))
	}
	if strings.Contains(console, "guest: left ") {
		t.Error("the agent left a volume mounted")
	}
	expectConsole(t, console, "volume IMPRINT: found a payload of")
	for _, v := range volumes {
		d := s.describe(v.name + "-1")
		expectByToken(t, d)
		if !slices.Contains(kinds(d), imprint.EventRead) {
			t.Errorf("%s: the private parameter was not read", v.name)
		}
		expectConsole(t, console, fmt.Sprintf("guest: machine        %s-1", v.name))
	}
	if got := s.describe("other-1").Instance.Enrolment.State; got != imprint.Reserved {
		t.Errorf("a volume without the label made a machine %s", got)
	}
	for i, after := range digests(t, disks) {
		if after != before[i] {
			t.Errorf("%s was written to", filepath.Base(disks[i].Path))
		}
	}
	s.expectAbsent(private...)
}

func digests(t *testing.T, disks []qemu.Disk) []string {
	t.Helper()
	var list []string
	for _, d := range disks {
		b, err := os.ReadFile(d.Path)
		if err != nil || len(bytes.Trim(b, "\x00")) == 0 {
			t.Fatalf("%s has nothing on it: %v", d.Path, err)
		}
		list = append(list, sumOf(t, d.Path))
	}
	return list
}

func sumOf(t *testing.T, path string) string {
	t.Helper()
	return fmt.Sprintf("%x", sha256.Sum256([]byte(read(t, path))))
}

// freeAddress returns an address on the loopback interface where nobody listens.
// The server has to be told one, because payloads name it before it is dialled.
func freeAddress(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}
