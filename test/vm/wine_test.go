//go:build vm

package vm_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/sha1"
	"crypto/x509"
	"debug/pe"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"imprint"
	"imprint/test/need"
)

// Wine takes the place of Windows: serial ports, registry, drives and access lists
// are its own, and the agent is the one that a Windows machine gets.
func TestWindowsAgent(t *testing.T) {
	w := newWine(t)
	t.Run("COM2", w.enrolsOverCOM2)
	w.server("--kill")
	if err := os.RemoveAll(w.path("ProgramData/imprint")); err != nil {
		t.Fatal(err)
	}
	t.Run("volume", w.findsAVolume)
}

// enrolsOverCOM2: everything is where Windows expects it.
func (w *wine) enrolsOverCOM2(t *testing.T) {
	s := newServer(t)
	private := canary("private")
	id := s.create("name: win-1\ndnsNames: [win-1.lab.internal]\nparams: {private: {db-password: {env: DB_PASSWORD}}}\n", "DB_PASSWORD="+private)
	w.setCOM2(t, terminal(t, s.socket(id, imprint.Serial2)))
	w.write(t, "ProgramData/imprint/enrolled.d/10-tell.cmd", "@echo off\r\necho %IMPRINT_EVENT% %IMPRINT_NAME%>C:\\told\r\n")

	out := w.agent(t, "run", "--once", "--wait", "30s")
	expectConsole(t, out, `serial port \\.\COM2: found a payload of`, "confirmed: imprint knows that win-1 holds its key")
	d := s.describe("win-1")
	expectInOrder(t, d, imprint.EventReserved, imprint.EventDelivered, imprint.EventClaimed, imprint.EventIssued,
		imprint.EventConfirmed, imprint.EventClosed)
	claim := d.Instance.Enrolment.Claim
	if claim == nil || claim.Tier != imprint.TierHost || claim.Channel != imprint.Serial2 {
		t.Fatalf("claim %+v; want tier 3 over COM2", claim)
	}

	leaf, err := x509.ParseCertificate(w.pem(t, "ProgramData/imprint/cert.pem"))
	if err != nil || !slices.Equal(leaf.DNSNames, []string{"win-1.lab.internal"}) {
		t.Fatalf("cert.pem: %v, %v", leaf, err)
	}
	key, err := x509.ParsePKCS8PrivateKey(w.pem(t, "ProgramData/imprint/key.pem"))
	if k, ok := key.(*ecdsa.PrivateKey); !ok || !k.PublicKey.Equal(leaf.PublicKey) {
		t.Errorf("key.pem is not the key of cert.pem: %v", err)
	}
	if id := imprint.KeyIDOf(leaf.RawSubjectPublicKeyInfo); id != claim.Key {
		t.Errorf("cert.pem is for key %s, but %s claimed", id, claim.Key)
	}
	root := fmt.Sprintf("%X", sha1.Sum(w.pem(t, "ProgramData/imprint/ca.pem"))) // as Windows names certificates
	if out, err := w.run("reg", "query", `HKLM\Software\Microsoft\SystemCertificates\ROOT\Certificates\`+root); err != nil {
		t.Errorf("Windows does not trust the CA: %s", out)
	}
	if told := w.read(t, "told"); strings.TrimSpace(told) != "enrolled win-1" {
		t.Errorf("enrolled.d was told %q", told)
	}

	// Values are not kept, because they would be on a disk.
	if out := w.agent(t, "param", "db-password"); !strings.HasSuffix(out, private) {
		t.Errorf("param printed %q", out)
	}
	if index := w.read(t, "ProgramData/imprint/run/params.json"); !strings.Contains(index, `"db-password"`) {
		t.Errorf("params.json is %s", index)
	}
	expectAbsent(t, w.path("ProgramData"), private)
	s.expectAbsent(private)

	if out := w.agent(t, "run", "--once"); !strings.Contains(out, "win-1 is enrolled") {
		t.Errorf("a second start says:\n%s", out)
	}
	if serial := s.describe("win-1").Instance.Enrolment.Certificate.Serial; serial != d.Instance.Enrolment.Certificate.Serial {
		t.Error("a second start was given another certificate")
	}
}

// findsAVolume: a drive with the right label has the payload. That it stays there is on
// record, with the reason.
func (w *wine) findsAVolume(t *testing.T) {
	s := newCheckIn(t, thisHost)
	s.create("name: win-2\ndnsNames: [win-2.lab.internal]\n")
	drive := t.TempDir()
	medium := filepath.Join(t.TempDir(), "medium")
	s.imprint(nil, "media", "win-2", "--dialect", "native", "--carrier", "fat-mbr", "--out", medium)
	payload := s.imprint(nil, "media", "inspect", medium, "--print", "payload.json")
	if err := os.WriteFile(filepath.Join(drive, "payload.json"), []byte(payload), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(drive, ".windows-label"), []byte("imprint\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	w.setCOM2(t, noDevice)
	if err := os.Symlink(drive, filepath.Join(w.prefix, "dosdevices", "e:")); err != nil {
		t.Fatal(err)
	}
	expectConsole(t, w.agent(t, "run", "--once", "--wait", "10s"), "volume IMPRINT: found a payload of")
	expectByToken(t, s.describe("win-2"))
	expectMedium(t, s, "win-2", imprint.EventLeft, "why", "take away volume IMPRINT: on Windows the agent overwrites no volume")
}

// wine is a Windows of its own, as far as Wine goes.
type wine struct {
	program string
	prefix  string // the directory that it lives in
	exe     string // the agent
}

// noDevice is a serial port that leads nowhere.
const noDevice = "/nonexistent"

// newWine makes a Windows and the agent for it.
func newWine(t *testing.T) *wine {
	t.Helper()
	w := &wine{program: need.Program(t, "wine", "wine and wine64"), prefix: filepath.Join(t.TempDir(), "prefix")}
	w.exe = buildAgent(t, "windows", "amd64")
	t.Cleanup(func() { w.server("--kill") })
	if out, err := w.run("wineboot", "--init"); err != nil {
		t.Fatalf("wineboot: %v\n%s", err, out)
	}
	// Go's programs get randomness from a library that this Wine may not have yet.
	library := w.path("windows/system32/bcryptprimitives.dll")
	if _, err := os.Stat(library); err != nil {
		w.write(t, "windows/system32/bcryptprimitives.dll", string(forwarder("bcryptprimitives.dll", "ProcessPrng", "advapi32.SystemFunction036")))
	}
	w.setCOM2(t, noDevice) // and not the port of the machine that runs the test, as Wine would have it
	return w
}

// setCOM2 makes a terminal Windows' second serial port.
func (w *wine) setCOM2(t *testing.T, device string) {
	t.Helper()
	if out, err := w.run("reg", "add", `HKLM\Software\Wine\Ports`, "/v", "COM2", "/t", "REG_SZ", "/d", device, "/f"); err != nil {
		t.Fatalf("reg add: %v\n%s", err, out)
	}
	w.server("--kill") // Windows looks at its ports and drives when it starts
	w.server("--wait")
}

// agent runs the agent, which has to succeed, and returns what it said.
func (w *wine) agent(t *testing.T, args ...string) string {
	t.Helper()
	out, err := w.run(w.exe, args...)
	if err != nil {
		t.Fatalf("imprint-agent.exe %q: %v\n%s", args, err, out)
	}
	return out
}

func (w *wine) run(name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, w.program, append([]string{name}, args...)...)
	cmd.Env = w.environ()
	// A file and no pipe, which Windows' services would hold open.
	output, err := os.Create(w.prefix + ".output")
	if err != nil {
		return "", err
	}
	defer output.Close()
	cmd.Stdout, cmd.Stderr = output, output
	ran := cmd.Run()
	said, err := os.ReadFile(output.Name())
	return string(said), errors.Join(ran, err)
}

// server asks for, or waits for, the end of Wine's server, without which no
// Windows program runs.
func (w *wine) server(arg string) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "wineserver", arg)
	cmd.Env = w.environ()
	cmd.Run() // fails where there is none
}

func (w *wine) environ() []string {
	return append(os.Environ(), "WINEPREFIX="+w.prefix, "WINEARCH=win64", "WINEDEBUG=-all", "DISPLAY=", "WINEDLLOVERRIDES=mscoree,mshtml=")
}

// path returns where a file of drive C is.
func (w *wine) path(name string) string { return filepath.Join(w.prefix, "drive_c", name) }

func (w *wine) read(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(w.path(name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func (w *wine) write(t *testing.T, name, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(w.path(name)), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(w.path(name), []byte(content), 0o755); err != nil {
		t.Fatal(err)
	}
}

// pem returns the content of the first PEM block of a file.
func (w *wine) pem(t *testing.T, name string) []byte {
	t.Helper()
	block, _ := pem.Decode([]byte(w.read(t, name)))
	if block == nil {
		t.Fatalf("%s is not PEM", name)
	}
	return block.Bytes
}

// forwarder returns a library for 64-bit Windows without any code: its one export
// is another library's function (Microsoft's PE format, "The .edata Section").
func forwarder(dll, export, target string) []byte {
	const (
		fileAlign, sectionAlign = 0x200, 0x1000
		rva                     = sectionAlign
	)
	// The section: the directory, three tables of one entry, and the names.
	const functions, names, ordinals, text = 40, 44, 48, 50
	dllAt := uint32(rva + text)
	exportAt := dllAt + uint32(len(dll)) + 1
	targetAt := exportAt + uint32(len(export)) + 1
	end := targetAt + uint32(len(target)) + 1
	var section bytes.Buffer
	le := func(b *bytes.Buffer, v ...any) {
		for _, x := range v {
			binary.Write(b, binary.LittleEndian, x)
		}
	}
	le(&section, []uint32{0, 0, 0, dllAt, 1, 1, 1, rva + functions, rva + names, rva + ordinals})
	le(&section, targetAt, exportAt, uint16(0))
	section.WriteString(dll + "\x00" + export + "\x00" + target + "\x00")

	var f bytes.Buffer
	dos := make([]byte, 64)
	copy(dos, "MZ")
	dos[60] = 64
	f.Write(dos)
	f.WriteString("PE\x00\x00")
	opt := pe.OptionalHeader64{
		Magic: 0x20b, ImageBase: 0x180000000, SectionAlignment: sectionAlign, FileAlignment: fileAlign,
		MajorOperatingSystemVersion: 6, MajorSubsystemVersion: 6, SizeOfImage: 2 * sectionAlign, SizeOfHeaders: fileAlign,
		Subsystem: pe.IMAGE_SUBSYSTEM_WINDOWS_GUI, DllCharacteristics: pe.IMAGE_DLLCHARACTERISTICS_DYNAMIC_BASE | pe.IMAGE_DLLCHARACTERISTICS_NX_COMPAT,
		NumberOfRvaAndSizes: 16,
	}
	opt.DataDirectory[pe.IMAGE_DIRECTORY_ENTRY_EXPORT] = pe.DataDirectory{VirtualAddress: rva, Size: end - rva}
	le(&f, pe.FileHeader{
		Machine: pe.IMAGE_FILE_MACHINE_AMD64, NumberOfSections: 1, SizeOfOptionalHeader: uint16(binary.Size(opt)),
		Characteristics: pe.IMAGE_FILE_EXECUTABLE_IMAGE | pe.IMAGE_FILE_LARGE_ADDRESS_AWARE | pe.IMAGE_FILE_DLL,
	}, opt, pe.SectionHeader32{
		Name: [8]byte{'.', 'e', 'd', 'a', 't', 'a'}, VirtualSize: uint32(section.Len()), VirtualAddress: rva,
		SizeOfRawData: fileAlign, PointerToRawData: fileAlign, Characteristics: pe.IMAGE_SCN_CNT_INITIALIZED_DATA | pe.IMAGE_SCN_MEM_READ,
	})
	f.Write(make([]byte, fileAlign-f.Len()))
	section.Write(make([]byte, fileAlign-section.Len()))
	f.Write(section.Bytes())
	return f.Bytes()
}
