package disk_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"imprint"
	"imprint/internal/disk"
	"imprint/test/need"
)

// header changes both headers of a GUID partition table, and corrects their checksums.
func header(change func(h []byte)) func(*testing.T, string) {
	return func(t *testing.T, path string) {
		data := read(t, path)
		for _, at := range []int{sector, len(data) - sector} {
			h := data[at : at+sector]
			change(h)
			clear(h[16:20])
			binary.LittleEndian.PutUint32(h[16:], crc32.ChecksumIEEE(h[:binary.LittleEndian.Uint32(h[12:])]))
			overwrite(t, path, int64(at), h)
		}
	}
}

// entry changes an entry in both arrays of a GUID partition table, and corrects the
// checksums.
func entry(n int, change func(e []byte)) func(*testing.T, string) {
	return func(t *testing.T, path string) {
		data := read(t, path)
		array := data[2*sector : 34*sector]
		change(array[n*128 : n*128+128])
		overwrite(t, path, 2*sector, array)
		overwrite(t, path, int64(len(data)-33*sector), array)
		header(func(h []byte) { binary.LittleEndian.PutUint32(h[88:], crc32.ChecksumIEEE(array)) })(t, path)
	}
}

// Everything that is not understood, or has no room, is refused with a sentence that
// says why, and its bytes stay as they were.
func TestRefusedAndUntouched(t *testing.T) {
	t.Parallel()
	le := binary.LittleEndian
	then := func(steps ...func(*testing.T, string)) func(*testing.T, string) {
		return func(t *testing.T, path string) {
			for _, step := range steps {
				step(t, path)
			}
		}
	}
	write := func(at int64, b string) func(*testing.T, string) {
		return func(t *testing.T, path string) { overwrite(t, path, at, []byte(b)) }
	}
	script := func(s string) func(*testing.T, string) {
		return func(t *testing.T, path string) { sfdisk(t, path, s) }
	}
	tool := func(program string, args ...string) func(*testing.T, string) {
		return func(t *testing.T, path string) { run(t, program, append(args, path)...) }
	}
	size := func(to int64) func(*testing.T, string) {
		return func(t *testing.T, path string) {
			if err := os.Truncate(path, to); err != nil {
				t.Fatal(err)
			}
		}
	}
	const end = 40 * mib
	once := func(make func(*testing.T, string)) func(*testing.T, string) { // sfdisk takes a quarter of a second
		var once sync.Once
		var made []byte
		return func(t *testing.T, path string) {
			once.Do(func() { make(t, path); made = read(t, path) })
			overwrite(t, path, 0, made)
		}
	}
	gpt, mbr := once(script("label: gpt\nsize=10M, name=root\n")), once(script("label: dos\nsize=10M\n"))
	garbage := strings.Repeat("damage! ", 8)
	for name, c := range map[string]struct {
		make func(*testing.T, string)
		kind imprint.Kind
		says string
	}{
		"nothing on it":                         {func(*testing.T, string) {}, imprint.Invalid, "it has no partition table"},
		"too small":                             {size(4096), imprint.Invalid, "too few for partitions"},
		"half a sector":                         {then(gpt, size(end+100)), imprint.Invalid, "no whole sectors"},
		"both headers damaged":                  {then(gpt, write(sector+20, garbage), write(end-sector+20, garbage)), imprint.Invalid, "both copies of its GUID partition table are damaged"},
		"both arrays damaged":                   {then(gpt, write(3*sector, garbage), write(end-32*sector, garbage)), imprint.Invalid, "both copies of its GUID partition table are damaged"},
		"damaged and grown":                     {then(gpt, write(3*sector, garbage), size(end+mib)), imprint.Invalid, "damaged, and the backup is not at its end"},
		"cut off":                               {then(gpt, size(end-mib)), imprint.Invalid, "its end is missing"},
		"grown over something":                  {then(gpt, size(end+mib), write(end+mib-1000, "RAID")), imprint.Invalid, "not at its end, and something else is there"},
		"a boot loader at the entries' place":   {then(gpt, write(sector, garbage), write(2*sector, garbage)), imprint.Invalid, "at the place of its entries is something else"},
		"hybrid":                                {then(gpt, tool("sgdisk", "--hybrid=1")), imprint.Invalid, "a hybrid"},
		"protective record replaced":            {then(gpt, write(450, "\x83")), imprint.Invalid, "protective boot record is damaged or has been replaced"},
		"protective record gone":                {then(gpt, write(510, "\x00\x00")), imprint.Invalid, "it has no partition table"},
		"entries of 256 bytes":                  {then(gpt, header(func(h []byte) { le.PutUint32(h[80:], 64); le.PutUint32(h[84:], 256) })), imprint.Invalid, "64 entries of 256"},
		"a header of 96 bytes":                  {then(gpt, header(func(h []byte) { le.PutUint32(h[12:], 96) })), imprint.Invalid, "a header of 96 bytes"},
		"65536 entries":                         {then(gpt, header(func(h []byte) { le.PutUint32(h[80:], 65536) })), imprint.Invalid, "65536 entries"},
		"last usable sector in the backup":      {then(gpt, header(func(h []byte) { le.PutUint64(h[48:], end/sector-20) })), imprint.Invalid, "up to 81900, and the table's backup is from 81887 on"},
		"last usable sector beyond counting":    {then(gpt, header(func(h []byte) { le.PutUint64(h[48:], 1<<64-1) })), imprint.Invalid, "and the table's backup is from"},
		"first usable sector in the entries":    {then(gpt, header(func(h []byte) { le.PutUint64(h[40:], 20) })), imprint.Invalid, "its entries are at 2"},
		"a partition beyond the end":            {then(gpt, entry(0, func(e []byte) { le.PutUint64(e[40:], end/sector-10) })), imprint.Invalid, "its partition 1 is from byte"},
		"a partition of negative length":        {then(gpt, entry(0, func(e []byte) { le.PutUint64(e[40:], 100) })), imprint.Invalid, "its partition 1 is from sector 2048 to 100"},
		"overlap":                               {then(gpt, entry(1, func(e []byte) { e[0] = 1; le.PutUint64(e[32:], 3000); le.PutUint64(e[40:], 60000) })), imprint.Invalid, "its partitions 1 and 2 overlap"},
		"all entries used":                      {then(gpt, full), imprint.Exhausted, "all 128 entries"},
		"no room":                               {script("label: gpt\nsize=12M\nsize=5M\nsize=15M\n"), imprint.Exhausted, "a partition of 16 MiB does not fit: its largest gap has 6 MiB"},
		"no room in pieces":                     {script("label: gpt\nstart=30000, size=20M\n"), imprint.Exhausted, "its largest gap has 13 MiB"},
		"no room beside logical partitions":     {script("label: dos\nsize=1M\nsize=37M, type=5\nstart=8192, size=5M\n"), imprint.Exhausted, "its largest gap has 0 MiB"},
		"four primary partitions":               {script("label: dos\nsize=1M\nsize=1M\nsize=1M\nsize=1M\n"), imprint.Exhausted, "all 4 entries of its master boot record are used"},
		"over 2 TiB with a master boot record":  {then(mbr, size(2<<40+mib)), imprint.Invalid, "a master boot record counts to 4294967296"},
		"a dynamic disk":                        {script("label: dos\nsize=10M, type=42\n"), imprint.Invalid, "dynamic disk of Windows"},
		"overlap in a master boot record":       {then(mbr, write(462, "\x00\x00\x00\x00\x83\x00\x00\x00\x00\x10\x00\x00\x00\x10\x00\x00")), imprint.Invalid, "its partitions 1 and 2 overlap"},
		"a master boot record beyond the end":   {then(mbr, size(9*mib)), imprint.Invalid, "its partition 1 is from byte 1048576 to 11534336"},
		"a partition without length":            {then(mbr, write(458, "\x00\x00\x00\x00")), imprint.Invalid, "the entry of its partition 1 is none"},
		"flags that are none":                   {then(mbr, write(446, "\x7f")), imprint.Invalid, "the entry of its partition 1 is none"},
		"two extended partitions":               {then(script("label: dos\nsize=10M, type=5\nsize=10M, type=83\n"), write(466, "\x05"), write(11*mib+510, "\x55\xaa")), imprint.Invalid, "two extended partitions"},
		"an extended partition without records": {then(script("label: dos\nsize=10M, type=5\n"), write(mib+510, "\x00\x00")), imprint.Invalid, "no boot record at byte 1048576"},
		"a chain that leads beyond":             {then(script("label: dos\nstart=2048, size=10M, type=5\nstart=4096, size=1M\nstart=8192, size=1M\n"), write(mib+470, "\x00\x00\x00\x80")), imprint.Invalid, "it names 512 bytes at"},
		"a chain that leads to itself":          {then(script("label: dos\nstart=2048, size=10M, type=5\nstart=4096, size=1M\nstart=8192, size=1M\n"), loopBack), imprint.Invalid, "the chain in its extended partition leads from"},
		"FAT as a whole":                        {func(t *testing.T, path string) { run(t, "mkfs.vfat", "-n", "X", path) }, imprint.Invalid, "but is a FAT file system as a whole"},
		"ext4 as a whole":                       {tool("mke2fs", "-q", "-F", "-t", "ext4"), imprint.Invalid, "but is an ext file system as a whole"},
		"an LVM physical volume":                {write(sector, "LABELONE"), imprint.Invalid, "LVM physical volume"},
		"LUKS":                                  {write(0, "LUKS\xba\xbe"), imprint.Invalid, "LUKS volume"},
		"XFS":                                   {write(0, "XFSB"), imprint.Invalid, "XFS file system"},
		"Btrfs":                                 {write(0x10040, "_BHRfS_M"), imprint.Invalid, "Btrfs file system"},
		"a CD":                                  {then(mbr, write(32768, "\x01CD001")), imprint.Invalid, "a CD image"},
		"qcow2":                                 {write(0, "QFI\xfb\x00\x00\x00\x03"), imprint.Invalid, "no raw disk but a qcow2 image"},
		"qcow2 with nothing in it":              {then(write(0, "QFI\xfb\x00\x00\x00\x03"), size(196616)), imprint.Invalid, "no raw disk but a qcow2 image"},
		"VMDK":                                  {write(0, "KDMV"), imprint.Invalid, "no raw disk but a VMDK image"},
		"gzip":                                  {write(0, "\x1f\x8b\x08"), imprint.Invalid, "no raw disk but a gzip file"},
		"the name is there":                     {script("label: gpt\nsize=10M, name=\"CONFIG-2\"\n"), imprint.Exists, "(\"CONFIG-2\") is called config-2 already"},
		"the label is there on FAT":             {then(mbr, fatLabel), imprint.Exists, "its partition 1 is called config-2 already"},
		"the label is there on ISO 9660":        {then(gpt, write(mib+32768, "\x01CD001\x01"), write(mib+32768+40, "config-2                        ")), imprint.Exists, "is called config-2 already"},
		"the label is there on ext4":            {then(gpt, extLabel), imprint.Exists, "is called config-2 already"},
		"the label is there on a logical one":   {then(script("label: dos\nsize=20M, type=5\nstart=4096, size=10M\n"), write(2*mib+32768, "\x01CD001\x01"), write(2*mib+32768+40, "config-2  ")), imprint.Exists, "its partition 5 is called config-2 already"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "disk")
			if err := os.WriteFile(path, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			size(end)(t, path)
			c.make(t, path)
			refused(t, path, c.kind, c.says)
		})
	}
}

// full uses every entry of a GUID partition table.
func full(t *testing.T, path string) {
	array := read(t, path)[2*sector : 34*sector]
	for i := range 128 {
		e := array[128*i:]
		e[0], e[16] = 1, byte(i)
		binary.LittleEndian.PutUint64(e[32:], uint64(40000+i))
		binary.LittleEndian.PutUint64(e[40:], uint64(40000+i))
	}
	overwrite(t, path, 2*sector, array)
	entry(0, func([]byte) {})(t, path)
}

// loopBack lets the second record of an extended partition name itself as the next.
func loopBack(t *testing.T, path string) {
	data := read(t, path)
	second := data[mib+462 : mib+478]
	at := mib + int64(binary.LittleEndian.Uint32(second[8:]))*sector
	overwrite(t, path, at+462, second)
}

func fatLabel(t *testing.T, path string) {
	part := path + ".part"
	if err := os.WriteFile(part, make([]byte, 10*mib), 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, "mkfs.vfat", "-n", "CONFIG-2", part)
	b := read(t, part)
	copy(b[43:], "NO NAME    ") // what counts is the root's
	overwrite(t, path, mib, b)
	os.Remove(part)
}

func extLabel(t *testing.T, path string) {
	part := path + ".part"
	if err := os.WriteFile(part, make([]byte, 10*mib), 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, "mke2fs", "-q", "-F", "-L", "config-2", part)
	overwrite(t, path, mib, read(t, part))
	os.Remove(part)
}

// refused fails the test unless a partition is refused, as kind and says say, and
// the disk's bytes are the same before and after.
func refused(t *testing.T, path string, kind imprint.Kind, says string) {
	t.Helper()
	sum := func() uint32 {
		info, err := os.Stat(path)
		if err != nil || !info.Mode().IsRegular() {
			return 0
		}
		if info.Size() > 1<<30 { // its ends
			f, err := os.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			b := make([]byte, 2*mib)
			f.ReadAt(b[:mib], 0)
			f.ReadAt(b[mib:], info.Size()-mib)
			return crc32.ChecksumIEEE(b)
		}
		return crc32.ChecksumIEEE(read(t, path))
	}
	before := sum()
	d, err := disk.Open(path)
	if err == nil {
		_, err = disk.Prepare(d, disk.Partition{Name: "config-2", Size: 16 * mib, Type: 0x0e})
		d.Close()
	}
	if imprint.KindOf(err) != kind || err == nil || !strings.Contains(err.Error(), says) {
		t.Errorf("kind %s: %v", imprint.KindOf(err), err)
	}
	if sum() != before {
		t.Error("the disk was written to")
	}
}

// What is no disk, or not the one that was named, is refused.
func TestNoDisk(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "disk")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	grow(t, path, 64*mib)
	sfdisk(t, path, "label: gpt\n")
	link, fifo := filepath.Join(dir, "link"), filepath.Join(dir, "fifo")
	if err := os.Symlink("disk", link); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	refused(t, link, imprint.Invalid, "it is a symbolic link, and not to a block device")
	refused(t, fifo, imprint.Invalid, "neither a regular file nor a block device")
	refused(t, dir, imprint.Invalid, "neither a regular file nor a block device")
	refused(t, "/dev/null", imprint.Invalid, "neither a regular file nor a block device")
	refused(t, filepath.Join(dir, "none"), imprint.NotFound, "no such file")

	if os.Geteuid() == 0 { // who may write what is read-only to others
		readOnly(t, path, true)
		refused(t, path, imprint.Denied, "operation not permitted")
		readOnly(t, path, false)
	} else if err := os.Chmod(path, 0o400); err == nil {
		refused(t, path, imprint.Denied, "permission denied")
	}
}

// readOnly makes a file immutable, or mutable again.
func readOnly(t *testing.T, path string, on bool) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	flags, err := unix.IoctlGetInt(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	if err != nil {
		need.Kernel(t, false, "immutable files in "+filepath.Dir(path))
	}
	flags &^= unix.STATX_ATTR_IMMUTABLE
	if on {
		flags |= unix.STATX_ATTR_IMMUTABLE
	}
	if err := unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, flags); err != nil {
		t.Fatal(err)
	}
}

// A disk that a QEMU has open is refused, for as long as it has it; and a QEMU does
// not get one that is being changed. It runs alone: the child that another test
// starts has the lock of this one's disk too, until it runs its program.
func TestDiskOfAMachineThatRuns(t *testing.T) {
	program := need.Program(t, "qemu-system-x86_64", "qemu-system-x86")
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	grow(t, path, 64*mib)
	sfdisk(t, path, "label: gpt\nsize=10M, name=root\n")
	for _, how := range []string{"", ",readonly=on"} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		qemu := exec.CommandContext(ctx, program, "-nodefaults", "-machine", "pc,accel=tcg", "-display", "none", "-S", "-qmp", "stdio",
			"-drive", "file="+path+",format=raw,if=none,id=d"+how, "-device", "virtio-blk-pci,drive=d")
		var stderr bytes.Buffer
		qemu.Stderr = &stderr
		stdin, err := qemu.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		stdout, err := qemu.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		d, err := disk.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		if out, err := exec.CommandContext(ctx, program, qemu.Args[1:]...).CombinedOutput(); err == nil || !strings.Contains(string(out), `Failed to lock byte 100`) {
			t.Errorf("a QEMU got a disk that is being changed: %v %s", err, out)
		}
		d.Close()
		if err := qemu.Start(); err != nil {
			t.Fatal(err)
		}
		if greeting, err := bufio.NewReader(stdout).ReadString('\n'); err != nil {
			t.Errorf("QEMU: %q, %v, %s", greeting, err, &stderr)
		}
		refused(t, path, imprint.Conflict, "it is in use: another program has locked it, as QEMU does")
		fmt.Fprintln(stdin, `{"execute":"qmp_capabilities"}{"execute":"quit"}`)
		if err := qemu.Wait(); err != nil {
			t.Errorf("QEMU: %v, %s", err, &stderr)
		}
	}
	addTo(t, path, 16*mib)
}
