package helpervm

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"imprint/internal/job"
	"imprint/internal/platform/qemu"
)

// tbSize is how many MiB of translated code QEMU's emulation keeps. What it takes of the
// host's memory comes on top of the VM's.
const tbSize = 256

// vm is what QEMU's arguments are made from. Descriptors are those of QEMU's process.
type vm struct {
	accel         qemu.Accel
	machine       qemu.Type
	memory, cpus  int
	tsc           int // of the host, in kHz
	kernel        string
	initrd        string
	network       bool
	console, port int
	streams       []streamPort // in the order of their names
	disks         []diskFD
}

type streamPort struct {
	name string
	fd   int
}

type diskFD struct {
	fd        int
	block, ro bool
}

// args returns QEMU's arguments. Nothing in them is a path but those of kernel and
// initramfs, and nothing a secret.
func (v *vm) args() []string {
	a := []string{
		"-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-msg", "timestamp=off",
		"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
		"-machine", v.machineType(), "-accel", v.acceleration(), "-cpu", v.cpu(),
		"-smp", strconv.Itoa(v.cpus), "-m", strconv.Itoa(v.memory),
		"-kernel", v.kernel, "-initrd", v.initrd, "-append", v.commandLine(),
		"-chardev", fmt.Sprintf("socket,id=console,fd=%d", v.console), "-serial", "chardev:console",
		"-chardev", fmt.Sprintf("socket,id=job,fd=%d", v.port),
		"-device", v.device("virtio-serial"), "-device", "virtserialport,chardev=job,name=" + job.PortName,
	}
	for i, s := range v.streams {
		id := "stream" + strconv.Itoa(i)
		a = append(a, "-chardev", fmt.Sprintf("socket,id=%s,fd=%d", id, s.fd),
			"-device", fmt.Sprintf("virtserialport,chardev=%s,name=%s%s", id, job.StreamPrefix, s.name))
	}
	for i, d := range v.disks {
		id := "disk" + strconv.Itoa(i)
		a = append(a, "-add-fd", fmt.Sprintf("fd=%d,set=%d", d.fd, i+1), "-blockdev", d.node(id, i+1),
			"-device", fmt.Sprintf("%s,drive=%s,serial=%s%d", v.device("virtio-blk"), id, job.DiskSerial, i))
	}
	if v.network {
		a = append(a, "-netdev", "user,id=net", "-device", v.device("virtio-net")+",netdev=net")
	}
	if v.machine == qemu.Microvm {
		a = append(a, "-global", "virtio-mmio.force-legacy=false")
	}
	return a
}

func (v *vm) machineType() string {
	if v.machine == qemu.Microvm {
		// acpi=on because distribution kernels find virtio devices in no other way.
		return "microvm,x-option-roms=off,isa-serial=on,rtc=on,acpi=on,pcie=off"
	}
	return string(v.machine)
}

func (v *vm) acceleration() string {
	if v.accel == qemu.KVM {
		return string(qemu.KVM)
	}
	return fmt.Sprintf("tcg,thread=multi,tb-size=%d", tbSize)
}

// cpu is the processor's model. To emulate the string instructions that move bytes one
// by one takes eight times as long as to emulate those that move words, so a kernel that
// copies by the latter saves a quarter of what unpacking a package costs.
func (v *vm) cpu() string {
	if v.accel == qemu.KVM {
		return "max"
	}
	return "max,-erms"
}

func (v *vm) device(kind string) string {
	if v.machine == qemu.Microvm {
		return kind + "-device"
	}
	if kind == "virtio-net" {
		return kind + "-pci,romfile="
	}
	return kind + "-pci"
}

// commandLine is the kernel's. What it turns off costs time, and defends either a
// system that has users or the guest's kernel from the guest's programs, which the VM
// as a whole contains.
func (v *vm) commandLine() string {
	line := []string{
		"console=ttyS0", "quiet", "loglevel=3", "panic=-1", "oops=panic", "reboot=t", "rdinit=/init",
		"random.trust_cpu=on", "mitigations=off", "no5lvl", "audit=0", "apparmor=0", "cryptomgr.notests",
		"initcall_blacklist=crypto_kdf108_init", // a self-test that waits
	}
	if !v.network {
		line = append(line, "ipv6.disable=1")
	}
	if v.accel != qemu.KVM { // an emulated timer is late on a busy host, and then the kernel's check of it panics
		line = append(line, "no_timer_check", "tsc=nowatchdog")
	}
	if v.machine == qemu.Microvm && v.tsc != 0 {
		line = append(line, "tsc_early_khz="+strconv.Itoa(v.tsc))
	}
	return strings.Join(line, " ")
}

// node describes a disk to QEMU. Flushes of the guest do nothing: the host makes
// everything durable once, before it says that the job succeeded.
func (d diskFD) node(id string, set int) string {
	driver := "file"
	if d.block {
		driver = "host_device"
	}
	type object = map[string]any
	cache := object{"direct": false, "no-flush": true}
	b, err := json.Marshal(object{
		"driver": "raw", "node-name": id, "read-only": d.ro, "discard": "unmap", "cache": cache,
		// Run has locked it, and QEMU's lock would be another user's.
		"file": object{"driver": driver, "filename": fmt.Sprintf("/dev/fdset/%d", set), "locking": "off", "discard": "unmap", "cache": cache},
	})
	if err != nil {
		panic(err) // of strings and booleans
	}
	return string(b)
}

// sortedStreams are the names of the streams in order.
func sortedStreams(m map[string]Stream) []string {
	names := make([]string, 0, len(m))
	for n := range m {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}
