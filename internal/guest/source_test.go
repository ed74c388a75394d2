//go:build linux

package guest

import (
	"bytes"
	"context"
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	"imprint"
	"imprint/internal/triton"
)

func TestEnrolsOverASerialPort(t *testing.T) {
	t.Parallel()
	host := newFakeHost(t)
	m := newMachine(t, host)
	master, slave, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	master.WriteString("BdsDxe: loading Boot0001\r\n") // what is there before anybody asks
	done := make(chan struct{})
	ctx, stop := context.WithCancel(context.Background())
	// The slave stays open until the end: without one the master reads EIO, and a
	// read of the master ends in no other way.
	defer func() { stop(); slave.Close(); <-done; master.Close() }()
	go func() {
		defer close(done)
		triton.Serve(ctx, master, host, triton.Options{})
	}()
	m.sources = []source{serialSource{slave.Name()}}
	start := time.Now()
	m.mustRun()
	t.Logf("enrolled over a pty in %s", time.Since(start).Round(time.Millisecond))
	if host.state != imprint.Closed {
		t.Errorf("the host is %s", host.state)
	}
}

func TestASerialPortIsTakenExclusivelyAndRaw(t *testing.T) {
	t.Parallel()
	master, slave, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer master.Close()
	defer slave.Close()
	f, err := openSerial(slave.Name())
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	termios, err := unix.IoctlGetTermios(int(slave.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	if termios.Lflag&(unix.ECHO|unix.ICANON|unix.ISIG) != 0 || termios.Cflag&unix.HUPCL != 0 || termios.Cflag&unix.CLOCAL == 0 || termios.Oflag&unix.OPOST != 0 {
		t.Errorf("termios = %+v", termios)
	}
	if _, err := openSerial(slave.Name()); imprint.KindOf(err) != imprint.Unavailable {
		t.Errorf("opened twice: %v", err)
	}
}

func TestSerialPortsThatAreNone(t *testing.T) {
	t.Parallel()
	if _, err := openSerial(filepath.Join(t.TempDir(), "ttyS1")); imprint.KindOf(err) != imprint.NotFound {
		t.Errorf("no node: %v", err)
	}
	if _, err := openSerial("/dev/null"); imprint.KindOf(err) != imprint.NotFound {
		t.Errorf("not a terminal: %v", err)
	}
}

func TestASilentPortIsGivenUp(t *testing.T) {
	t.Parallel()
	master, slave, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer master.Close()
	slave.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	if _, err := (serialSource{slave.Name()}).Try(ctx); imprint.KindOf(err) != imprint.Unavailable {
		t.Errorf("Try = %v", err)
	}
}

func TestFindsTheVirtioPortByItsName(t *testing.T) {
	t.Parallel()
	m := newMachine(t, nil)
	s := newVirtioSource(Layout{m.root})
	if _, err := s.device(); imprint.KindOf(err) != imprint.NotFound {
		t.Errorf("without ports: %v", err)
	}
	m.write("sys/class/virtio-ports/vport1p1/name", "org.qemu.guest_agent.0\n", 0o444)
	m.write("sys/class/virtio-ports/vport1p2/name", PortName+"\n", 0o444)
	m.write("dev/vport1p2", "", 0o600)
	if path, err := s.device(); err != nil || path != m.root+"/dev/vport1p2" {
		t.Errorf("without udev: %q, %v", path, err)
	}
	m.write("dev/virtio-ports/"+PortName, "", 0o600)
	if path, err := s.device(); err != nil || path != m.root+"/dev/virtio-ports/"+PortName {
		t.Errorf("with udev: %q, %v", path, err)
	}
}

// isoHead is the start of an ISO 9660 volume with a label.
func isoHead(label string) []byte {
	b := make([]byte, volumeHead)
	copy(b[16*2048:], "\x01CD001\x01")
	copy(b[16*2048+40:], label+strings.Repeat(" ", 32-len(label)))
	return b
}

// fatHead is the start of a FAT volume with a label.
func fatHead(at int, label, fstype string) []byte {
	b := make([]byte, 1024)
	copy(b[at:], label+strings.Repeat(" ", 11-len(label)))
	copy(b[at+11:], fstype)
	binary.LittleEndian.PutUint16(b[510:], 0xaa55)
	return b
}

func TestVolumeLabels(t *testing.T) {
	t.Parallel()
	for want, head := range map[string][]byte{
		"IMPRINT": isoHead("IMPRINT"),
		"imprint": fatHead(43, "imprint", "FAT12   "),
		"Imprint": fatHead(71, "Imprint", "FAT32   "),
		"":        make([]byte, volumeHead),
	} {
		if got := volumeLabel(head); got != want {
			t.Errorf("label %q, want %q", got, want)
		}
	}
}

func TestPayloadOnAVolume(t *testing.T) {
	t.Parallel()
	setUp := func(t *testing.T) (*machine, volumeSource, *int) {
		m := newMachine(t, nil)
		m.write("sys/class/block/vda/dev", "254:0\n", 0o444)
		m.write("dev/vda", strings.Repeat("\x00", volumeHead), 0o600)
		m.write("sys/class/block/sr0/dev", "11:0\n", 0o444)
		m.write("dev/sr0", string(isoHead("IMPRINT")), 0o600)
		mounted := 0
		return m, volumeSource{layout: Layout{m.root}, mount: func(device, dir string) (func() error, error) {
			if device != m.root+"/dev/sr0" {
				t.Errorf("mounted %s", device)
			}
			mounted++
			path := filepath.Join(dir, "PAYLOAD.JSON")
			return func() error { mounted--; return os.Remove(path) }, os.WriteFile(path, []byte("{}"), 0o444)
		}}, &mounted
	}
	t.Run("not mounted", func(t *testing.T) {
		t.Parallel()
		_, s, mounted := setUp(t)
		f, err := s.Try(t.Context())
		if err != nil || string(f.payload) != "{}" || *mounted != 0 {
			t.Errorf("Try = %v, %v; %d mounts are left", f, err, *mounted)
		}
	})
	t.Run("mounted", func(t *testing.T) {
		t.Parallel()
		m, s, mounted := setUp(t)
		m.write("proc/self/mountinfo", "1 0 254:0 / / rw - ext4 /dev/vda rw\n30 1 11:0 / /media/a\\040disc ro - iso9660 /dev/sr0 ro\n", 0o444)
		m.write("media/a disc/payload.json", "{ }", 0o444)
		f, err := s.Try(t.Context())
		if err != nil || string(f.payload) != "{ }" || *mounted != 0 {
			t.Errorf("Try = %v, %v", f, err)
		}
	})
	t.Run("of a user's making", func(t *testing.T) {
		t.Parallel()
		m, s, mounted := setUp(t)
		// A label in front of another file system, mounted with links and pipes in it.
		m.write("proc/self/mountinfo", "30 1 11:0 / /media/u rw - ext4 /dev/sr0 rw\n", 0o444)
		if err := os.MkdirAll(m.root+"/media/u", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mkfifo(m.root+"/media/u/payload.json", 0o644); err != nil {
			t.Fatal(err)
		}
		if f, err := s.Try(t.Context()); err != nil || string(f.payload) != "{}" || *mounted != 0 {
			t.Errorf("Try = %v, %v", f, err)
		}
		m.write("proc/self/mountinfo", "30 1 11:0 / /media/u rw - vfat /dev/sr0 rw\n", 0o444)
		if _, err := s.Try(t.Context()); imprint.KindOf(err) != imprint.NotFound {
			t.Errorf("Try = %v", err)
		}
		// A file that a user had attached to a loop device.
		os.Rename(m.root+"/sys/class/block/sr0", m.root+"/sys/class/block/loop0")
		os.Rename(m.root+"/dev/sr0", m.root+"/dev/loop0")
		if _, err := s.Try(t.Context()); imprint.KindOf(err) != imprint.NotFound {
			t.Errorf("Try = %v", err)
		}
	})
	t.Run("none", func(t *testing.T) {
		t.Parallel()
		m := newMachine(t, nil)
		if _, err := newVolumeSource(Layout{m.root}).Try(t.Context()); imprint.KindOf(err) != imprint.NotFound {
			t.Errorf("Try = %v", err)
		}
	})
}

func TestBadPayloadsAreNamed(t *testing.T) {
	t.Parallel()
	good := newFakeHost(t).payload
	encode := func(change func(*imprint.Payload)) []byte {
		p := good
		change(&p)
		b, err := p.Encode()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for name, b := range map[string][]byte{
		"empty":         {},
		"not JSON":      []byte("#cloud-config\n"),
		"oversize":      bytes.Repeat([]byte(" "), imprint.MaxPayload+1),
		"newer version": encode(func(p *imprint.Payload) { p.Version = 2 }),
		"CA not PEM":    encode(func(p *imprint.Payload) { p.CA = "trust me" }),
		"private key":   encode(func(p *imprint.Payload) { p.CA = "-----BEGIN PRIVATE KEY-----\nAA==\n-----END PRIVATE KEY-----\n" }),
	} {
		m := newMachine(t, nil)
		m.write("payload.json", string(b), 0o600)
		m.sources = []source{fileSource{filepath.Join(m.root, "payload.json")}}
		err := m.run(m.agent())
		// An oversize file is not even read: it counts as no payload.
		if code := exitCode(err); code != ExitUnusable && !(name == "oversize" && code == ExitNoPayload) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := os.Stat(filepath.Join(m.root, "etc/imprint/key.pem")); err == nil {
			t.Errorf("%s: a key was made", name)
		}
	}
}

func FuzzVolumeLabel(f *testing.F) {
	f.Add(isoHead("IMPRINT"))
	f.Add(fatHead(43, "IMPRINT", "FAT16   "))
	f.Add(fatHead(71, "IMPRINT", "FAT32   "))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		if label := volumeLabel(b); len(label) > 32 {
			t.Errorf("%q", label)
		}
	})
}

func FuzzMountinfo(f *testing.F) {
	f.Add([]byte("36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue\n"))
	f.Add([]byte("30 1 11:0 / /media/a\\040disc ro - iso9660 /dev/sr0 ro\n - \n\\777"))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, m := range parseMountinfo(b) {
			if len(m.point) > len(b) || strings.Contains(m.device, " ") {
				t.Errorf("%+v", m)
			}
		}
	})
}

func FuzzDevice(f *testing.F) {
	f.Add("254:16\n")
	f.Add(":")
	f.Add("4294967296:0")
	f.Fuzz(func(t *testing.T, s string) {
		if _, _, err := parseDevice(s); err != nil && imprint.KindOf(err) != imprint.Invalid {
			t.Error(err)
		}
	})
}

func FuzzChain(f *testing.F) {
	ca := newTestCA(f)
	f.Add([]byte(ca.rootPEM()))
	f.Add([]byte("text\n" + ca.rootPEM() + "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n"))
	f.Add([]byte("-----BEGIN EC PRIVATE KEY-----\nAA==\n-----END EC PRIVATE KEY-----\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		chain, err := parseChain(b)
		if err != nil {
			return
		}
		again, err := parseChain(encodeChain(chain))
		if err != nil || len(again) != len(chain) {
			t.Errorf("%d certificates became %d: %v", len(chain), len(again), err)
		}
	})
}

func FuzzTime(f *testing.F) {
	f.Add([]byte("2026-03-01T12:00:00Z"))
	f.Add([]byte("-1"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if at, err := parseTime(b); err == nil && (at.Year() < 0 || at.Year() > 9999) {
			t.Errorf("%s", at)
		}
	})
}

func FuzzSSHHostKey(f *testing.F) {
	f.Add([]byte("ssh-ed25519 AAAA root@web-1\n"))
	f.Add([]byte("ssh-rsa AAAA\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if key := sshHostKey(b); key != "" && (strings.ContainsAny(key, "\r\n") || !strings.HasPrefix(key, "ssh-ed25519 ")) {
			t.Errorf("%q", key)
		}
	})
}
