package qemu

import (
	"bufio"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"imprint"
)

var update = flag.Bool("update", false, "rewrite the golden files")

const testID imprint.InstanceID = "7c9f1c52-3b57-4a31-9d2e-0c6a5d0f7e11"

// The golden files hold one argument to a line, as QEMU gets them.
func TestArgs(t *testing.T) {
	machines := map[string]Machine{
		"minimal": {Kernel: "vmlinuz"},
		"q35-serial": {
			Kernel: "vmlinuz", Initrd: "initrd.gz", Append: "console=ttyS0 quiet", TSCKHz: 2600000,
			Instance: testID, MemoryMiB: 256, CPUs: 2,
			Console:  Console{Kind: ConsoleStdio, Log: "web-1.log"},
			Channels: []Channel{{imprint.Serial2, "/run/imprint/1/serial.sock"}},
		},
		"microvm-both": {
			Type: Microvm, Accel: KVM, Kernel: "vmlinuz", Append: "console=ttyS0", TSCKHz: 2596122, Instance: testID,
			Console: Console{Kind: ConsoleFile, Path: "web-1.log"},
			Channels: []Channel{
				{imprint.VirtioSerial, "/run/imprint/1/virtio-serial.sock"},
				{imprint.Serial2, "/run/imprint/1/serial.sock"},
			},
		},
		"pc-stock": {
			Type: PC, Kernel: "vmlinuz", Append: "root=/dev/vda", Instance: testID, Product: "SmartDC HVM",
			Console:  Console{Kind: ConsolePTY},
			Disks:    []Disk{{Path: "debian.raw"}, {Path: "state.qcow2", Format: "qcow2", Writable: true}},
			NICs:     []NIC{{MAC: "52:54:00:12:34:56"}, {Open: true}},
			Channels: []Channel{{imprint.Serial2, "/run/imprint/1/serial.sock"}},
		},
		"q35-tap": {
			Kernel: "vmlinuz", Append: "console=ttyS0", Instance: testID, Product: "OpenStack Nova",
			NICs: []NIC{{MAC: "02:12:34:56:78:9a", Tap: "imp0123456789ab"}, {MAC: "52:54:00:12:34:56"}},
		},
		"q35-system":  {Kernel: "vmlinuz", Instance: testID, System: "a,b/system"},
		"microvm-tap": {Type: Microvm, Kernel: "vmlinuz", NICs: []NIC{{MAC: "02:12:34:56:78:9a", Tap: "tap_1.x-y"}}},
		"q35-cd":      {Kernel: "vmlinuz", Medium: &Medium{CDDrive, "a,b/web-1.iso"}, Control: true},
		"q35-floppy":  {Kernel: "vmlinuz", Medium: &Medium{FloppyDrive, "web-1.flp"}},
		"pc-floppy":   {Type: PC, Kernel: "vmlinuz", Medium: &Medium{FloppyDrive, "web-1.flp"}},
		"q35-install": {
			Instance: testID, Disks: []Disk{{Path: "web-1.raw", Writable: true}, {Path: "scratch.raw"}}, NICs: []NIC{{MAC: "52:54:00:12:34:56"}},
			Medium:    &Medium{FloppyDrive, "web-1.flp"},
			Drives:    []Medium{{CDDrive, "a,b/netinst.iso"}, {CDDrive, "extra.iso"}, {DiskDrive, "drivers.img"}, {FloppyDrive, "answers.flp"}},
			BootOrder: []imprint.BootDevice{imprint.BootCD, imprint.BootNetwork, imprint.BootDisk},
		},
		"pc-disk":      {Type: PC, Disks: []Disk{{Path: "web-1.raw"}}},
		"microvm-disk": {Type: Microvm, Kernel: "vmlinuz", Medium: &Medium{DiskDrive, "web-1.img"}},
		"commas": {
			Kernel: "a,b/vmlinuz", Initrd: "a,b/initrd", Product: "Box, big", OEMStrings: "a,b/strings", ReadConfig: "a,b/qemu.conf",
			Console:  Console{Kind: ConsoleFile, Path: "a,b/log"},
			Disks:    []Disk{{Path: "a,b/disk"}},
			Channels: []Channel{{imprint.VirtioSerial, "/run/a,b/virtio-serial.sock"}},
		},
	}
	for name, m := range machines {
		t.Run(name, func(t *testing.T) {
			args, err := m.Args()
			if err != nil {
				t.Fatal(err)
			}
			got := strings.Join(args, "\n") + "\n"
			golden := filepath.Join("testdata", name+".args")
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("got\n%swant\n%s", got, want)
			}
		})
	}
}

// What ds-identify and the data sources of Debian 12's cloud-init look at.
func TestLookLike(t *testing.T) {
	t.Parallel()
	for platform, want := range map[Stock]string{
		OpenStack: "type=1,uuid=7c9f1c52-3b57-4a31-9d2e-0c6a5d0f7e11,product=OpenStack Nova",
		EC2:       "type=1,uuid=ec2f1c52-3b57-4a31-9d2e-0c6a5d0f7e11,serial=ec2f1c52-3b57-4a31-9d2e-0c6a5d0f7e11",
		NoCloud:   "type=1,uuid=7c9f1c52-3b57-4a31-9d2e-0c6a5d0f7e11,serial=ds=nocloud-net;s=http://169.254.169.254/nocloud/",
		SmartOS:   "type=1,uuid=7c9f1c52-3b57-4a31-9d2e-0c6a5d0f7e11,product=SmartDC HVM",
	} {
		m := Machine{Kernel: "vmlinuz", Instance: testID}
		if err := m.LookLike(platform); err != nil {
			t.Fatal(err)
		}
		args, err := m.Args()
		if i := slices.Index(args, "-smbios"); err != nil || i < 0 || args[i+1] != want {
			t.Errorf("%s: %q, %v; want %s", platform, args, err, want)
		}
		m.Type = Microvm
		if _, err := m.Args(); imprint.KindOf(err) != imprint.Invalid {
			t.Errorf("%s on a microvm, which has no SMBIOS: %v", platform, err)
		}
	}
	if _, err := (&Machine{Type: Microvm, Kernel: "vmlinuz", OEMStrings: "strings"}).Args(); imprint.KindOf(err) != imprint.Invalid {
		t.Errorf("strings on a microvm: %v", err)
	}
	if err := new(Machine).LookLike("azure"); imprint.KindOf(err) != imprint.Invalid {
		t.Errorf("an unknown platform: %v", err)
	}
}

func TestImpossibleMachines(t *testing.T) {
	long := "/" + strings.Repeat("x", maxSocketPath)
	for name, m := range map[string]Machine{
		"kernel":              {},
		"boots no disk":       {Type: Microvm, Disks: []Disk{{Path: "d"}}},
		"initial RAM disk":    {Initrd: "i", Disks: []Disk{{Path: "d"}}},
		"boot order":          {Kernel: "k", BootOrder: []imprint.BootDevice{imprint.BootCD}},
		"usb":                 {BootOrder: []imprint.BootDevice{"usb"}},
		"floppy controller's": {Drives: []Medium{{FloppyDrive, "a"}, {FloppyDrive, "b"}, {FloppyDrive, "c"}}},
		"isa":                 {Kernel: "k", Type: "isapc"},
		"accelerator":         {Kernel: "k", Accel: "hax"},
		"cpus":                {Kernel: "k", CPUs: MaxCPUs + 1},
		"memory":              {Kernel: "k", MemoryMiB: 1},
		"instance":            {Kernel: "k", Instance: "web-1,product=x"},
		"product":             {Kernel: "k", Type: Microvm, Product: "SmartDC HVM"},
		"system":              {Kernel: "k", System: "file", Serial: "x"},
		"UUID":                {Kernel: "k", UUID: "ec2,serial=x"},
		"SMBIOS":              {Kernel: "k", Serial: strings.Repeat("x", maxSMBIOS+1)},
		"console":             {Kernel: "k", Console: Console{Kind: ConsoleFile}},
		"format":              {Kernel: "k", Disks: []Disk{{Path: "d", Format: "vmdk,x=y"}}},
		"no floppy drive":     {Kernel: "k", Type: Microvm, Medium: &Medium{FloppyDrive, "m"}},
		"tape":                {Kernel: "k", Medium: &Medium{"tape", "m"}},
		"no file is given":    {Kernel: "k", Medium: &Medium{CDDrive, ""}},
		"MAC":                 {Kernel: "k", NICs: []NIC{{MAC: "x,romfile=/etc/passwd"}}},
		"one interface":       {Kernel: "k", NICs: []NIC{{MAC: "03:00:00:00:00:01"}}},
		"8 are allowed":       {Kernel: "k", NICs: make([]NIC, MaxNICs+1)},
		"name of a tap":       {Kernel: "k", NICs: []NIC{{Tap: "tap0,script=/bin/sh"}}},
		"0123456789abcdef":    {Kernel: "k", NICs: []NIC{{Tap: "0123456789abcdef"}}},
		"..":                  {Kernel: "k", NICs: []NIC{{Tap: ".."}}},
		"alone can be open":   {Kernel: "k", NICs: []NIC{{Tap: "tap0", Open: true}}},
		"tap0 is given twice": {Kernel: "k", NICs: []NIC{{Tap: "tap0"}, {Tap: "tap0"}}},
		"est":                 {Kernel: "k", Channels: []Channel{{imprint.NetworkEST, "/s"}}},
		"twice":               {Kernel: "k", Channels: []Channel{{imprint.Serial2, "/s"}, {imprint.Serial2, "/t"}}},
		"absolute":            {Kernel: "k", Channels: []Channel{{imprint.Serial2, "s"}}},
		"socket path":         {Kernel: "k", Channels: []Channel{{imprint.Serial2, long}}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := m.Args()
			if imprint.KindOf(err) != imprint.Invalid || err == nil || !strings.Contains(err.Error()+imprint.HintOf(err), name) {
				t.Errorf("got %v; want an error of kind invalid that names %q", err, name)
			}
		})
	}
}

// What Command prints, a shell reads back as the very arguments.
func TestCommandRoundTrip(t *testing.T) {
	t.Parallel()
	m := Machine{
		Program: "/opt/qemu 9/bin/it's", Kernel: `a b'c"d$e\f` + "`g`;h,i*?[j]~", Initrd: "-i\nj", Append: "console=ttyS0 x='1 2' &|<>()#!",
		Channels: []Channel{{imprint.Serial2, "/run/$HOME/ä/serial.sock"}},
	}
	args, err := m.Args()
	if err != nil {
		t.Fatal(err)
	}
	line, err := m.Command()
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("sh", "-c", `printf '%s\0' `+line).Output()
	if err != nil {
		t.Fatalf("%v: the shell refused\n%s", err, line)
	}
	got := strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00")
	if want := append([]string{m.Program}, args...); !slices.Equal(got, want) {
		t.Errorf("the shell read\n%q\nwant\n%q", got, want)
	}
}

func TestTSCFromCPUInfo(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]int{
		"processor\t: 0\ncpu MHz\t\t: 2596.122\ncache size : 512 KB\ncpu MHz : 1000.0\n": 2596122,
		"processor\t: 0\nBogoMIPS\t: 50.00\n":                                            0, // not x86
		"cpu MHz : fast\n":                                                               0,
		"cpu MHz : -1\n":                                                                 0,
		"":                                                                               0,
	} {
		if got := tscOf(bufio.NewScanner(strings.NewReader(text))); got != want {
			t.Errorf("%q: got %d kHz, want %d", text, got, want)
		}
	}
}

func TestCheckNamesPackages(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	kernel := filepath.Join(t.TempDir(), "vmlinuz")
	missing := Check(kernel)
	var names, remedies []string
	for _, f := range missing {
		names = append(names, f.Name)
		remedies = append(remedies, f.Remedy)
	}
	if want := []string{Program, "busybox", kernel}; !slices.Equal(names, want) {
		t.Errorf("missing %q, want %q", names, want)
	}
	if want := "apt-get install qemu-system-x86"; len(remedies) == 0 || remedies[0] != want {
		t.Errorf("remedies %q, want %q first", remedies, want)
	}
	fake(t, "exit 0")
	if got := Check(""); len(got) != 1 || got[0].Name != "busybox" {
		t.Errorf("with QEMU in PATH got %v, want busybox only", got)
	}
}
