// Package qemu runs an instance in a local QEMU with imprint's channels
// attached.
//
// A [Machine] says what the virtual machine consists of; [Machine.Args] is a pure
// function from it to QEMU's arguments, [Machine.Command] prints the same for a
// shell, and [Machine.Start] runs it with a time limit. On every channel imprint
// listens on a unix socket and QEMU is the client, which comes back by itself
// when imprint was restarted. [Probe] finds out whether KVM works here, which
// the existence of /dev/kvm does not tell. Nothing in this package takes a
// secret, so none can reach a command line.
package qemu

import (
	"cmp"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"imprint"
)

// Program is the QEMU binary that is looked for in PATH.
const Program = "qemu-system-x86_64"

// PortName is the name of imprint's virtio-serial port, by which the guest finds it.
const PortName = "org.imprint.boot.0"

// Limits of a [Machine].
const (
	MaxCPUs      = 64
	MinMemoryMiB = 64
	MaxMemoryMiB = 1 << 20
	MaxDisks     = 16
	MaxNICs      = 8
	// maxSocketPath is what sun_path holds beside its terminating NUL (unix(7)).
	maxSocketPath = 107
	maxSMBIOS     = 255 // bytes of a string, as little of SMBIOS as everybody can read
	maxTap        = 15  // bytes of an interface's name: IFNAMSIZ less its NUL (linux/if.h)
)

// Type is a machine type.
type Type string

// The machine types.
const (
	Q35     Type = "q35"     // a PC with PCI Express and SMBIOS; the default
	PC      Type = "pc"      // a PC with PCI, IDE and a floppy controller
	Microvm Type = "microvm" // the quickest; has no SMBIOS, so stock clients find nothing
)

// Accel is what executes the guest's instructions.
type Accel string

// The accelerators.
const (
	TCG Accel = "tcg" // emulation: works everywhere; the default
	KVM Accel = "kvm" // hardware; ask [Probe] before using it
)

// Machine describes a virtual machine. The zero value of every field has a working
// meaning, but there has to be something to boot from: a kernel, or what firmware
// finds on a disk, a medium or the network.
type Machine struct {
	Program   string // path of the QEMU binary; "" is [Program] in PATH
	Type      Type   // "" is [Q35]
	Accel     Accel  // "" is [TCG]
	CPUs      int    // 0 is 1
	MemoryMiB int    // 0 is 512

	Kernel string // a Linux kernel image, booted directly; "" has firmware boot the machine
	// Firmware is a file with the machine's firmware, as from [UEFI]; "" is QEMU's own,
	// which is a BIOS. Its variables are as they are in the file at every start.
	Firmware string
	Initrd   string // "" is none
	Append   string // the kernel's command line
	// TSCKHz is the host's time-stamp counter rate, as from [HostTSC]. A microvm
	// needs it: with neither HPET nor ACPI timer its kernel calibrates against the
	// PIT, which under emulation fails at random and then hangs for ever.
	TSCKHz int

	Instance imprint.InstanceID // becomes the SMBIOS system UUID; "" is a random one
	// By these stock clients choose a data source: see [Machine.LookLike].
	Product string // the SMBIOS product; "" is QEMU's
	Serial  string // the SMBIOS serial number; "" is none
	UUID    string // the SMBIOS system UUID; "" is Instance
	// OEMStrings is a file with an SMBIOS structure of type 11, such as the carrier
	// smbios: only its name is on the command line. "" is none.
	OEMStrings string
	// System is a file with an SMBIOS structure of type 1, such as the carrier
	// smbios-system, in the place of Product, Serial, UUID and Instance. "" is none.
	System string
	// ReadConfig is a file of more options, such as qemu.conf in a directory of the
	// carrier fw-cfg. "" is none.
	ReadConfig string

	Console Console
	Disks   []Disk
	Medium  *Medium // nil is none
	// Drives are more media, which cannot be taken away while the machine runs.
	Drives   []Medium
	NICs     []NIC
	Channels []Channel
	// BootOrder is in which order firmware tries what it may boot from; nil is its
	// own. Of several devices of a sort the first comes first.
	BootOrder []imprint.BootDevice
	// Control has [Machine.Start] keep a connection to QEMU's monitor, by which
	// [Process.TakeAway] works.
	Control bool
}

// ConsoleKind says where the guest's first serial port goes.
type ConsoleKind string

// The console kinds.
const (
	ConsoleNone  ConsoleKind = ""      // nowhere
	ConsoleStdio ConsoleKind = "stdio" // to QEMU's standard input and output
	ConsoleFile  ConsoleKind = "file"  // to the file Path, which is overwritten
	ConsolePTY   ConsoleKind = "pty"   // to a pseudo-terminal, whose name QEMU prints
)

// Console is the guest's first serial port, ttyS0.
type Console struct {
	Kind ConsoleKind
	Path string // the file of [ConsoleFile]
	Log  string // a file that also keeps what the guest prints; "" is none
}

// Disk is a virtio disk, in the guest /dev/vda and so on.
type Disk struct {
	Path   string
	Format string // raw or qcow2; "" is raw
	// Writable lets writes reach the file; otherwise they are discarded at the end,
	// so that one image serves any number of machines.
	Writable bool
}

// NIC is a virtio network interface, on a tap of the host or on QEMU's own
// network. That one is restricted, so that the guest reaches nothing through it,
// unless Open is set.
type NIC struct {
	MAC string // "" is QEMU's default, the same for every machine
	// Tap is an interface that exists and that QEMU's user may open; "" is QEMU's
	// own network. QEMU runs no script on it and does not delete it.
	Tap string
	// Open lets the guest reach the host's loopback addresses, at 10.0.2.2, and
	// all that the host reaches. It means nothing with a Tap.
	Open bool
}

// Channel is one of imprint's channels and the unix socket on which imprint
// listens for it.
type Channel struct {
	Kind   imprint.ChannelKind // [imprint.Serial2] or [imprint.VirtioSerial]
	Socket string
}

// Args returns QEMU's arguments, without the program. It fails with kind
// [imprint.Invalid] if the machine cannot be expressed; it does not look at files.
func (m *Machine) Args() ([]string, error) {
	if err := m.check(); err != nil {
		return nil, err
	}
	a := args{"-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"}
	a.add("-machine", m.machineType())
	a.add("-accel", m.acceleration())
	a.add("-cpu", "max")
	a.add("-smp", strconv.Itoa(max(m.CPUs, 1)))
	a.add("-m", strconv.Itoa(m.memory()))
	if m.Kernel != "" {
		a.add("-kernel", m.Kernel)
	}
	if m.Firmware != "" {
		a.add("-bios", m.Firmware)
	}
	if m.Initrd != "" {
		a.add("-initrd", m.Initrd)
	}
	if line := m.commandLine(); line != "" && m.Kernel != "" {
		a.add("-append", line)
	}
	if s := m.smbios(); s != "" {
		a.add("-smbios", s)
	}
	for _, structure := range []string{m.System, m.OEMStrings} {
		if structure != "" {
			a.add("-smbios", "file="+escape(structure))
		}
	}
	if m.ReadConfig != "" {
		a.add("-readconfig", m.ReadConfig)
	}
	a.console(m.Console)
	order := bootOrder{wanted: m.BootOrder}
	for i, d := range m.Disks {
		a.disk(i, d, order.index(imprint.BootDisk))
	}
	if m.Type != PC && slices.ContainsFunc(m.media(), func(d Medium) bool { return d.Drive == FloppyDrive }) {
		a.add("-device", "isa-fdc") // which a pc has
	}
	floppies := 0
	for i, d := range m.media() {
		id := mediumID
		if m.Medium == nil || i > 0 {
			id = fmt.Sprintf("drive%d", i)
		}
		a.medium(id, &d, floppies, order.index(bootDevice(d.Drive)))
		if d.Drive == FloppyDrive {
			floppies++
		}
	}
	for i, n := range m.NICs {
		a.nic(i, n, order.index(imprint.BootNetwork))
	}
	for _, c := range m.Channels {
		a.channel(m.Type, c)
	}
	if m.Control {
		a.add("-chardev", fmt.Sprintf("socket,id=control,fd=%d", controlFD), "-mon", "chardev=control,mode=control")
	}
	return a, nil
}

// Command returns the command line in a form that can be pasted into a shell,
// one option to a line. It fails as [Machine.Args] does.
func (m *Machine) Command() (string, error) {
	args, err := m.Args()
	if err != nil {
		return "", err
	}
	var b strings.Builder
	b.WriteString(shellQuote(m.program()))
	for _, arg := range args {
		if strings.HasPrefix(arg, "-") {
			b.WriteString(" \\\n ")
		}
		b.WriteString(" " + shellQuote(arg))
	}
	return b.String(), nil
}

func (m *Machine) program() string {
	if m.Program == "" {
		return Program
	}
	return m.Program
}

func (m *Machine) memory() int {
	if m.MemoryMiB == 0 {
		return 512
	}
	return m.MemoryMiB
}

func (m *Machine) machineType() string {
	switch m.Type {
	case Microvm:
		// acpi=on because distribution kernels find virtio devices in no other way.
		return "microvm,x-option-roms=off,isa-serial=on,rtc=on,acpi=on,pcie=on"
	case "":
		return string(Q35)
	}
	return string(m.Type)
}

func (m *Machine) acceleration() string {
	if m.Accel == KVM {
		return string(KVM)
	}
	return "tcg,thread=multi,tb-size=512"
}

// commandLine is the kernel's, with what makes it boot on this machine.
func (m *Machine) commandLine() string {
	line := m.Append
	add := func(option, value string) {
		if !strings.Contains(line, option) {
			line = strings.TrimSpace(line + " " + option + value)
		}
	}
	if m.Type == Microvm && m.TSCKHz != 0 {
		add("tsc_early_khz=", strconv.Itoa(m.TSCKHz))
	}
	if m.Accel != KVM { // an emulated timer is late on a busy host, and then the kernel's check of it panics
		add("no_timer_check", "")
	}
	return line
}

func (m *Machine) smbios() string {
	s := "type=1"
	if uuid := cmp.Or(m.UUID, string(m.Instance)); uuid != "" {
		s += ",uuid=" + uuid
	}
	if m.Product != "" {
		s += ",product=" + escape(m.Product)
	}
	if m.Serial != "" {
		s += ",serial=" + escape(m.Serial)
	}
	if m.Type == Microvm || m.System != "" || s == "type=1" {
		return "" // QEMU takes either a file or fields
	}
	return s
}

func (m *Machine) check() error {
	invalid := func(operand, format string, a ...any) error {
		return imprint.Errorf(imprint.Invalid, "describe", operand, format, a...)
	}
	switch {
	case !slices.Contains([]Type{"", Q35, PC, Microvm}, m.Type):
		return invalid("machine type", "%q is none of q35, pc, microvm", m.Type)
	case !slices.Contains([]Accel{"", TCG, KVM}, m.Accel):
		return invalid("accelerator", "%q is neither tcg nor kvm", m.Accel)
	case m.CPUs < 0 || m.CPUs > MaxCPUs:
		return invalid("cpus", "%d; 1 to %d are allowed", m.CPUs, MaxCPUs)
	case m.memory() < MinMemoryMiB || m.memory() > MaxMemoryMiB:
		return invalid("memory", "%d MiB; %d to %d are allowed", m.MemoryMiB, MinMemoryMiB, MaxMemoryMiB)
	case m.Kernel == "" && (m.Type == Microvm || len(m.Disks)+len(m.media())+len(m.BootOrder) == 0):
		return imprint.Errorf(imprint.Invalid, "describe", "kernel", "none is given, and there is nothing else to boot from").
			WithHint("name a kernel image, for instance /boot/vmlinuz-* of a Debian cloud kernel, or a disk; a microvm boots no disk")
	case m.Kernel == "" && m.Initrd+m.Append != "":
		return invalid("kernel", "none is given, which the initial RAM disk and the command line are for")
	case m.Instance != "" && !imprint.ValidID(string(m.Instance)):
		return invalid("instance", "%q is not an identifier", m.Instance)
	case m.UUID != "" && !imprint.ValidID(m.UUID):
		return invalid("UUID", "%q is none", m.UUID)
	case len(m.Product) > maxSMBIOS || len(m.Serial) > maxSMBIOS:
		return invalid("SMBIOS", "a string of more than %d bytes", maxSMBIOS)
	case m.Type == Microvm && m.Product+m.Serial+m.UUID+m.System+m.OEMStrings != "":
		return imprint.Errorf(imprint.Invalid, "describe", "product", "a microvm has no SMBIOS").
			WithHint("use machine type q35 or pc")
	case m.System != "" && m.Product+m.Serial+m.UUID != "":
		return imprint.Errorf(imprint.Invalid, "describe", "SMBIOS", "the file %s says already what the system is", m.System).
			WithHint("leave product, serial number and UUID out, or the file")
	case m.Type == Microvm && m.Firmware != "":
		return imprint.Errorf(imprint.Invalid, "describe", "firmware", "a microvm has its own").
			WithHint("use machine type q35 or pc")
	case m.Console.Kind == ConsoleFile && m.Console.Path == "":
		return invalid("console", "no file is given")
	case !slices.Contains([]ConsoleKind{ConsoleNone, ConsoleStdio, ConsoleFile, ConsolePTY}, m.Console.Kind):
		return invalid("console", "%q is none of stdio, file, pty", m.Console.Kind)
	case len(m.Disks) > MaxDisks:
		return invalid("disks", "%d; %d are allowed", len(m.Disks), MaxDisks)
	}
	for _, d := range m.Disks {
		if !slices.Contains([]string{"", "raw", "qcow2"}, d.Format) {
			return invalid("disk "+d.Path, "format %q is neither raw nor qcow2", d.Format)
		}
	}
	if err := m.checkMedia(); err != nil {
		return err
	}
	if err := m.checkNICs(); err != nil {
		return err
	}
	return m.checkChannels()
}

func (m *Machine) checkNICs() error {
	invalid := func(format string, a ...any) error {
		return imprint.Errorf(imprint.Invalid, "describe", "network interface", format, a...)
	}
	if len(m.NICs) > MaxNICs {
		return invalid("%d of them; %d are allowed", len(m.NICs), MaxNICs)
	}
	taps := map[string]bool{}
	for _, n := range m.NICs {
		if mac, err := net.ParseMAC(n.MAC); n.MAC != "" && (err != nil || len(mac) != 6 || mac[0]&1 != 0) {
			return invalid("%q is not the MAC address of one interface", n.MAC)
		}
		switch {
		case n.Tap == "":
		case !validTap(n.Tap):
			return invalid("%q is not the name of a tap", n.Tap)
		case n.Open:
			return invalid("tap %s is not QEMU's own network, which alone can be open", n.Tap)
		case taps[n.Tap]:
			return invalid("tap %s is given twice", n.Tap)
		}
		taps[n.Tap] = true
	}
	return nil
}

// validTap is narrower than the kernel's rule, which allows what QEMU's options do not.
func validTap(s string) bool {
	plain := func(c rune) bool {
		return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.ContainsRune("-_.", c)
	}
	return len(s) <= maxTap && s[0] != '-' && s != "." && s != ".." && strings.IndexFunc(s, func(c rune) bool { return !plain(c) }) < 0
}

func (m *Machine) checkChannels() error {
	seen := map[imprint.ChannelKind]bool{}
	for _, c := range m.Channels {
		operand := "channel " + string(c.Kind)
		switch {
		case c.Kind != imprint.Serial2 && c.Kind != imprint.VirtioSerial:
			return imprint.Errorf(imprint.Invalid, "describe", operand, "QEMU does not carry it").
				WithHint("use %s or %s", imprint.VirtioSerial, imprint.Serial2)
		case seen[c.Kind]:
			return imprint.Errorf(imprint.Invalid, "describe", operand, "is given twice")
		case !filepath.IsAbs(c.Socket):
			return imprint.Errorf(imprint.Invalid, "describe", operand, "socket %q is not an absolute path", c.Socket)
		case len(c.Socket) > maxSocketPath:
			return imprint.Errorf(imprint.Invalid, "describe", operand, "socket path %q has %d bytes; unix sockets allow %d", c.Socket, len(c.Socket), maxSocketPath).
				WithHint("choose a shorter run directory")
		}
		seen[c.Kind] = true
	}
	return nil
}

// args collects QEMU's arguments.
type args []string

func (a *args) add(arg ...string) { *a = append(*a, arg...) }

// console attaches the first serial port. It is there even if it leads nowhere,
// because imprint's port has to be the second.
func (a *args) console(c Console) {
	backend := "null,id=console"
	switch c.Kind {
	case ConsoleStdio:
		backend = "stdio,id=console" // an interrupt ends the machine
	case ConsoleFile:
		backend = "file,id=console,path=" + escape(c.Path)
	case ConsolePTY:
		backend = "pty,id=console"
	}
	if c.Log != "" {
		backend += ",logfile=" + escape(c.Log)
	}
	a.add("-chardev", backend, "-serial", "chardev:console")
}

func (a *args) disk(n int, d Disk, boot string) {
	format := d.Format
	if format == "" {
		format = "raw"
	}
	mode := "snapshot=on"
	if d.Writable {
		mode = "cache=writeback"
	}
	a.add("-drive", fmt.Sprintf("id=disk%d,if=none,file=%s,format=%s,%s", n, escape(d.Path), format, mode))
	a.add("-device", fmt.Sprintf("virtio-blk-pci,drive=disk%d%s", n, boot))
}

func (a *args) nic(n int, c NIC, boot string) {
	device := fmt.Sprintf("virtio-net-pci,netdev=net%d", n)
	if boot == "" {
		device += ",romfile=" // which only a boot from the network needs
	}
	device += boot
	if c.MAC != "" {
		device += ",mac=" + c.MAC
	}
	backend := fmt.Sprintf("user,id=net%d,restrict=on", n)
	switch {
	case c.Tap != "":
		backend = fmt.Sprintf("tap,id=net%d,ifname=%s,script=no,downscript=no", n, c.Tap)
	case c.Open:
		backend = fmt.Sprintf("user,id=net%d,restrict=off", n)
	}
	a.add("-netdev", backend, "-device", device)
}

// channel attaches one of imprint's sockets. The port keeps no logfile: private
// values travel over it.
func (a *args) channel(t Type, c Channel) {
	id := "imprint-" + string(c.Kind)
	a.add("-chardev", fmt.Sprintf("socket,id=%s,path=%s,server=off,reconnect=1", id, escape(c.Socket)))
	switch {
	case c.Kind == imprint.VirtioSerial:
		a.add("-device", "virtio-serial-pci", "-device", fmt.Sprintf("virtserialport,chardev=%s,name=%s", id, PortName))
	case t == Microvm:
		a.add("-device", "isa-serial,index=1,chardev="+id) // its -serial reaches the first port only
	default:
		a.add("-serial", "chardev:"+id)
	}
}
