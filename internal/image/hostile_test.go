package image_test

import (
	"bytes"
	"encoding/binary"
	"os"
	"strings"
	"testing"

	"imprint"
	"imprint/test/need"
)

// made returns an image that qemu-img makes of what diskBytes has.
func made(t *testing.T, size int, args ...string) []byte {
	t.Helper()
	raw := write(t, "image.raw", diskBytes(9, size))
	command(t, need.Program(t, "qemu-img", "qemu-utils"), append(append([]string{"convert"}, args...), raw, raw+".made")...)
	b, err := os.ReadFile(raw + ".made")
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// change is one lie in an image.
type change struct {
	do   func(b []byte) []byte
	want string // of the error
}

func be64(at int, v uint64) func(b []byte) []byte {
	return func(b []byte) []byte { binary.BigEndian.PutUint64(b[at:], v); return b }
}

func be32(at int, v uint32) func(b []byte) []byte {
	return func(b []byte) []byte { binary.BigEndian.PutUint32(b[at:], v); return b }
}

func le32(at int, v uint32) func(b []byte) []byte {
	return func(b []byte) []byte { binary.LittleEndian.PutUint32(b[at:], v); return b }
}

func le64(at int, v uint64) func(b []byte) []byte {
	return func(b []byte) []byte { binary.LittleEndian.PutUint64(b[at:], v); return b }
}

func half(b []byte) []byte { return b[:len(b)/2] }

// refusedUntouched fails unless every change is found, by name, before the disk is
// touched; or, of what only shows in the middle, before the disk has a beginning.
func refusedUntouched(t *testing.T, image func() []byte, changes map[string]change) {
	t.Helper()
	for name, c := range changes {
		t.Run(name, func(t *testing.T) {
			source := write(t, "image", c.do(image()))
			path := dirty(t, 8*mib)
			before, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			_, err = install(t, source, path)
			if kind := imprint.KindOf(err); kind != imprint.Invalid && kind != imprint.Exhausted {
				t.Fatalf("%v: %v", kind, err)
			}
			if !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v; want %q", err, c.want)
			}
			after, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(before, after) && len(bytes.TrimLeft(after[:mib], "\x00")) > 0 {
				t.Errorf("the disk has a beginning")
			}
			if !bytes.Equal(before, after) && !strings.HasPrefix(name, "later: ") {
				t.Errorf("the disk was touched")
			}
		})
	}
}

func TestHostileQcow2(t *testing.T) {
	plain := made(t, 4*mib, "-O", "qcow2", "-o", "cluster_size=4k")
	l1 := int(binary.BigEndian.Uint64(plain[40:]))
	l2 := int(binary.BigEndian.Uint64(plain[l1:]) & 0x00fffffffffffe00)
	backing := func(b []byte) []byte {
		copy(b[600:], "/etc/passwd")
		binary.BigEndian.PutUint64(b[8:], 600)
		binary.BigEndian.PutUint32(b[16:], 11)
		return b
	}
	extension := func(kind uint32) func(b []byte) []byte {
		return func(b []byte) []byte { return be32(int(binary.BigEndian.Uint32(b[100:])), kind)(b) }
	}
	data := 0 // the entry of an allocated cluster
	for binary.BigEndian.Uint64(plain[l2+data:]) == 0 {
		data += 8
	}
	refusedUntouched(t, func() []byte { return bytes.Clone(plain) }, map[string]change{
		"backing file":                    {backing, "it has a backing file"},
		"backing file of no length":       {be64(8, 600), "it has a backing file"},
		"external data file":              {be64(72, 1<<2), "it has an external data file"},
		"name of a data file":             {extension(0x44415441), "it names an external data file"},
		"corrupt":                         {be64(72, 1<<1), "marked as corrupt"},
		"unknown feature":                 {be64(72, 1<<60), "features that are not known"},
		"AES":                             {be32(32, 1), "it is encrypted"},
		"LUKS":                            {be32(32, 2), "it is encrypted"},
		"LUKS header":                     {extension(0x0537be77), "it is encrypted"},
		"version 1":                       {be32(4, 1), "version 1"},
		"version 4":                       {be32(4, 4), "version 4"},
		"clusters of 2^0":                 {be32(20, 0), "its clusters have 2^0 bytes"},
		"clusters of 2^63":                {be32(20, 63), "its clusters have 2^63 bytes"},
		"clusters of 2^4G":                {be32(20, 1<<32-1), "its clusters have 2^64 bytes"},
		"disk of -1":                      {be64(24, 1<<64-1), "at most 70368744177664"},
		"disk of 1 EiB":                   {be64(24, 1<<60), "at most 70368744177664"},
		"disk of 16 TiB, small L1":        {be64(24, 1<<44), "its first table has"},
		"L1 of 4G entries":                {be32(36, 1<<32-1), "its first table has 34359738360 bytes"},
		"L1 behind the end":               {be64(40, 1<<40), "its first table has"},
		"L1 at -1":                        {be64(40, 1<<64-4096), "its first table has"},
		"L1 at 1":                         {be64(40, uint64(l1)+1), "its first table has"},
		"L1 in the header":                {be64(40, 0), "its first table has"},
		"refcounts of 2^7 bits":           {be32(96, 7), "reference counts have 2^7 bits"},
		"refcounts nowhere":               {be64(48, 0), "its reference count table"},
		"refcounts behind the end":        {be64(48, 1<<50), "its reference count table"},
		"refcounts of 4G clusters":        {be32(56, 1<<32-1), "its reference count table"},
		"refcounts are L1":                {be64(48, uint64(l1)), "two of its tables overlap"},
		"header of 4G":                    {be32(100, 1<<32-8), "its header has"},
		"header of 0":                     {be32(100, 0), "its header has"},
		"unknown compression":             {func(b []byte) []byte { b[104] = 9; return b }, "compressed in a way that is not known (9)"},
		"compression not announced":       {func(b []byte) []byte { b[104] = 1; return b }, "compressed in a way that is not known (1)"},
		"extension without end":           {func(b []byte) []byte { return be32(116, 1<<32-1)(be32(112, 5)(b)) }, "an extension of its header"},
		"L2 is L1":                        {be64(l1, uint64(l1)|1<<63), "two of its tables overlap"},
		"L2 is the header":                {be64(l1, 1<<63|4096*0+1<<62), "entry 0 of its first table"},
		"L2 twice":                        {func(b []byte) []byte { copy(b[l1+8:], b[l1:l1+8]); return b }, "two of its tables overlap"},
		"L2 behind the end":               {be64(l1, 1<<63|1<<40), "entry 0 of its first table"},
		"header cut off":                  {func(b []byte) []byte { return b[:50] }, "its header is cut off"},
		"cluster behind the end":          {be64(l2+data, 1<<63|1<<40), "it is cut off"},
		"cluster between clusters":        {be64(l2+data, 1<<63|512), "an entry of a second table"},
		"reserved bit":                    {be64(l2+data, 1<<61), "an entry of a second table"},
		"compressed behind the end":       {be64(l2+data, 1<<62|1<<50), "it is cut off"},
		"later: compressed is the header": {be64(l2+data, 1<<62|8), "is no cluster"},
		"compressed and copied":           {be64(l2+data, 3<<62|4096), "and of another"},
		"compressed of all 1":             {be64(l2+data, 1<<63-1), "it is cut off"},
		"cut off":                         {half, ""},
	})
	whole := made(t, 4*mib, "-c", "-O", "qcow2")
	refusedUntouched(t, func() []byte { return bytes.Clone(whole) }, map[string]change{
		"later: compressed data are others": {func(b []byte) []byte {
			for i := 5 * 65536; i < len(b)-4096; i += 512 {
				b[i] ^= 0xff
			}
			return b
		}, ""},
	})
	// qemu-img itself has to be of the opinion that these are images, or the lies above
	// would be about nothing.
	for _, b := range [][]byte{plain, whole} {
		if _, err := install(t, write(t, "image", b), dirty(t, 8*mib)); err != nil {
			t.Errorf("what qemu-img made: %v", err)
		}
	}
}

func TestHostileVMDK(t *testing.T) {
	plain := made(t, 4*mib, "-O", "vmdk")
	text := bytes.Index(plain, []byte("# Disk DescriptorFile"))
	say := func(old, new string) func(b []byte) []byte {
		return func(b []byte) []byte {
			out := bytes.Replace(b[text:text+10240], []byte(old), []byte(new), 1)
			copy(b[text:text+10240], out)
			return b
		}
	}
	gd := int(binary.LittleEndian.Uint64(plain[56:])) * 512
	gt := int(binary.LittleEndian.Uint32(plain[gd:])) * 512
	refusedUntouched(t, func() []byte { return bytes.Clone(plain) }, map[string]change{
		"parent":                     {say("parentCID=ffffffff", "parentCID=12345678"), "it has a parent"},
		"parent's name":              {say("createType", "parentFileNameHint=\"/etc/passwd\"\ncreateType"), "it has a parent"},
		"data in another file":       {say(" SPARSE ", " FLAT   "), "its data in another file"},
		"two files":                  {say("# The Disk Data Base", "RW 1 SPARSE \"/etc/passwd\"\n#"), "with 2 files"},
		"another type":               {say("monolithicSparse", "twoGbMaxExtentFl"), `the type "twoGbMaxExtentFl"`},
		"no descriptor":              {le64(28, 0), "it has no descriptor"},
		"descriptor behind the end":  {le64(28, 1<<50), "its descriptor has"},
		"descriptor of 2^60 sectors": {le64(36, 1<<60), "its descriptor has"},
		"version 9":                  {le32(4, 9), "VMDK of version 9"},
		"unknown feature":            {le32(8, 1<<31|3), "features that are not known"},
		"disk of 2^63 sectors":       {le64(12, 1<<63), "at most 137438953472"},
		"disk of 32 TiB":             {le64(12, 1<<36), "its directory has"},
		"grains of 0":                {le64(20, 0), "its grains have 0 sectors"},
		"grains of 3":                {le64(20, 3), "its grains have 3 sectors"},
		"grains of 2^63":             {le64(20, 1<<63), "its grains have"},
		"tables of 0":                {le32(44, 0), "its grain tables have 0"},
		"tables of 2^31":             {le32(44, 1<<31), "its grain tables have"},
		"directory behind the end":   {le64(56, 1<<50), "its directory has"},
		"directory at 0":             {le64(56, 0), "its directory has"},
		"no footer":                  {le64(56, 1<<64-1), "its footer is missing"},
		"unknown compression":        {func(b []byte) []byte { b[77] = 7; return b }, "compressed in a way that is not known (7)"},
		"compression not announced":  {func(b []byte) []byte { b[77] = 1; return b }, "compressed in a way that is not known (1)"},
		"transferred as text":        {func(b []byte) []byte { b[75] = '\n'; return b }, "line ends were converted"},
		"header cut off":             {func(b []byte) []byte { return b[:100] }, "its header is cut off"},
		"table behind the end":       {le32(gd, 1<<31), "it is cut off"},
		"grain behind the end":       {le32(gt, 1<<31), "it is cut off"},
		"cut off":                    {half, "it is cut off"},
	})
	stream := made(t, 4*mib, "-O", "vmdk", "-o", "subformat=streamOptimized")
	refusedUntouched(t, func() []byte { return bytes.Clone(stream) }, map[string]change{
		"cut off": {half, ""},
		"later: grains are others": {func(b []byte) []byte {
			for i := 128 * 512; i < len(b)-64*512; i += 100 {
				b[i] ^= 0xff
			}
			return b
		}, ""},
	})
}

// What is compressed unpacks to an image that fits, or is refused: bombs included.
func TestHostileCompression(t *testing.T) {
	compress := func(args string, b []byte) []byte {
		in := write(t, "in", b)
		command(t, "sh", "-ec", "{ "+args+"; } <"+in+" >"+in+".out")
		out, err := os.ReadFile(in + ".out")
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	qcow2 := made(t, mib, "-O", "qcow2")
	for program, debianPackage := range map[string]string{"gzip": "gzip", "xz": "xz-utils", "zstd": "zstd", "bzip2": "bzip2"} {
		need.Program(t, program, debianPackage)
		good := compress(program+" -c", diskBytes(4, mib))
		bomb := compress("head -c 67108864 /dev/zero | "+program+" -c", nil)
		refusedUntouched(t, func() []byte { return bytes.Clone(good) }, map[string]change{
			program + " bomb":               {func([]byte) []byte { return bomb }, "it unpacks to more than the 8388608 bytes"},
			program + " cut off":            {half, "it is damaged"},
			program + " without its end":    {func(b []byte) []byte { return b[:len(b)-1] }, "it is damaged"},
			program + " with a changed bit": {func(b []byte) []byte { b[len(b)/2] ^= 1; return b }, "it is damaged"},
			program + " around qcow2":       {func([]byte) []byte { return compress(program+" -c", qcow2) }, "around qcow2; only a raw image may be inside"},
			program + " twice":              {func(b []byte) []byte { return compress(program+" -c", b) }, "only a raw image may be inside"},
			program + ", then garbage":      {func(b []byte) []byte { return append(b, "garbage garbage"...) }, ""},
		})
	}
}

// What is no image that can be installed from is not taken for a raw one.
func TestNoImage(t *testing.T) {
	pad := func(s string) []byte { return append([]byte(s), make([]byte, 4096)...) }
	tar := make([]byte, 4096)
	copy(tar[257:], "ustar")
	vhd := append(make([]byte, mib), pad("conectix")[:512]...)
	for name, test := range map[string]struct {
		b    []byte
		want string
	}{
		"empty":    {nil, "it is empty"},
		"VHDX":     {pad("vhdxfile"), "it is a VHDX image"},
		"VHD":      {vhd, "it is a VHD image"},
		"QED":      {pad("QED\x00"), "it is a QED image"},
		"tar":      {tar, "it is a tar archive"},
		"zip":      {pad("PK\x03\x04"), "it is a zip archive"},
		"web page": {pad("<!DOCTYPE html>"), "it is a web page"},
		"lz4":      {pad("\x04\x22\x4d\x18"), "it is an lz4 file"},
		"text":     {pad("# Disk DescriptorFile\n"), "the descriptor of a VMDK image"},
	} {
		_, err := install(t, write(t, "image", test.b), dirty(t, 8*mib))
		if imprint.KindOf(err) != imprint.Invalid || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v; want %q", name, err, test.want)
		}
	}
}
