package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"imprint"
	"imprint/api"
	"imprint/internal/media"
	"imprint/test/need"
)

// A medium that the disk has no room for leaves nothing behind, half-written or not.
func TestMediaOnAFullDisk(t *testing.T) {
	t.Parallel()
	need.Root(t)
	unshare := need.Program(t, "unshare", "util-linux")
	socket := handsOut(t, bytes.Repeat([]byte("random"), 50000))
	for _, carrier := range []string{"iso", "fat-mbr", "floppy", "initrd", "fw-cfg"} {
		script := `mount -t tmpfs -o size=100k none "$1" && cd "$1" && imprint --socket "$2" media web-1 --dialect nocloud --carrier "$3" --out medium; code=$?; ls -A; exit $code`
		var stderr bytes.Buffer
		cmd := exec.Command(unshare, "--mount", "sh", "-c", script, "sh", t.TempDir(), socket, carrier)
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != exitCode(imprint.Errorf(imprint.Exhausted, "write", "medium", "full")) {
			t.Errorf("%s: %v", carrier, err)
		}
		if got := stderr.String(); got != "imprint: write medium: no space left on device\n" {
			t.Errorf("%s: %s", carrier, got)
		}
		if len(out) > 0 {
			t.Errorf("%s: left on the disk: %s", carrier, strings.Fields(string(out)))
		}
	}
}

// A medium that is out is no news before the machine has enrolled, and what could
// not be taken away always is.
func TestDescribeShowsMedia(t *testing.T) {
	at := time.Date(2026, 11, 29, 12, 0, 0, 0, time.Local)
	const remedy = "take it away: imprint media blank FILE --instance web-1"
	out := imprint.Medium{Number: 2, Generation: 1, Dialect: "native", Carrier: "iso", Digest: "0123456789abcdef0123", Token: true, At: at, By: "root", State: imprint.MediumOut}
	taken, left, old, partition := out, out, out, out
	partition.Carrier = "partition"
	taken.State, taken.Detail = imprint.MediumTaken, "blanked"
	left.State, left.Detail, left.Settled = imprint.MediumLeft, "it is in use", at
	old.Generation = 0
	for name, c := range map[string]struct {
		media     []imprint.Medium
		forgotten int
		state     imprint.State
		want      []string
		overdue   bool
	}{
		"out":       {media: []imprint.Medium{out}, state: imprint.Reserved, want: []string{"Media: 2: native on iso with a one-time token, digest 0123456789abcdef, given to root 2026-11-29 12:00:00; out\n"}},
		"confirmed": {media: []imprint.Medium{out}, state: imprint.Confirmed, want: []string{"; out\n"}, overdue: true},
		"revoked":   {media: []imprint.Medium{out}, state: imprint.Revoked, want: []string{"; out\n"}, overdue: true},
		"before":    {media: []imprint.Medium{old}, state: imprint.Reserved, want: []string{"; out\n"}, overdue: true},
		"left":      {media: []imprint.Medium{left}, state: imprint.Reserved, want: []string{"; not taken away, 2026-11-29 12:00:00: it is in use\n"}, overdue: true},
		"partition": {media: []imprint.Medium{partition}, state: imprint.Closed, want: []string{"\n: from a disk: imprint media remove-partition DISK --label LABEL --instance web-1\n: or if"}, overdue: true},
		"taken":     {media: []imprint.Medium{taken}, state: imprint.Closed},
		"two":       {media: []imprint.Medium{out, taken, left}, state: imprint.Closed, want: []string{"Media: 2:", "\n: 2: native"}, overdue: true},
		"forgotten": {media: []imprint.Medium{taken}, forgotten: 3, state: imprint.Closed, want: []string{"Media: 3 earlier ones were not reported to be taken away"}},
	} {
		d := onNIC(nil)
		i := &d.Instance
		i.Generation, i.Media, i.MediaForgotten, i.Enrolment.State = 1, c.media, c.forgotten, c.state
		var b bytes.Buffer
		(&program{out: &b}).describe(&b, &d)
		text := strings.ReplaceAll(b.String(), "\t", ": ")
		for _, want := range c.want {
			if !strings.Contains(text, want) {
				t.Errorf("%s: it does not say %q:\n%s", name, want, text)
			}
		}
		if c.want == nil && strings.Contains(text, "Media") || strings.Contains(text, remedy) != c.overdue {
			t.Errorf("%s: it says\n%s", name, text)
		}
	}
}

// All of a block device is blanked, and one that may not be written is left. That
// the server cannot be told is an error with the way to tell it later.
func TestMediaBlankDevice(t *testing.T) {
	t.Parallel()
	need.Root(t)
	losetup := need.Program(t, "losetup", "mount")
	payload := imprint.Payload{Version: imprint.PayloadVersion, Instance: "7c9f1c52-3b57-4a31-9d2e-0c6a5d0f7e11", Generation: 1, Tenant: "default", Name: "web-1", CA: "x"}
	b, err := payload.Encode()
	if err != nil {
		t.Fatal(err)
	}
	v := media.Volume{Label: "IMPRINT", Time: time.Unix(2e9, 0), Files: map[string][]byte{"payload.json": b}}
	path := filepath.Join(t.TempDir(), "stick")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := errors.Join(media.ISO(f, &v), f.Truncate(4<<20)); err != nil { // the stick is larger than what is on it
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("older"), 4<<20-100); err != nil {
		t.Fatal(err)
	}
	attach := func(flags ...string) (device string, detach func()) {
		out, err := exec.Command(losetup, append(flags, "--find", "--show", path)...).Output()
		need.Kernel(t, err == nil, "loop devices")
		device = strings.TrimSpace(string(out))
		return device, func() { exec.Command(losetup, "-d", device).Run() }
	}
	settled := make(chan string, 2)
	socket := filepath.Join(t.TempDir(), "s")
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/instances/{ref}", func(w http.ResponseWriter, _ *http.Request) {
		json.NewEncoder(w).Encode(api.Instance{ID: payload.Instance, Ref: "web-1", Media: []imprint.Medium{
			{Number: 4, Carrier: "iso", Digest: imprint.DigestOfFiles(v.Files), State: imprint.MediumOut}}})
	})
	mux.HandleFunc("PUT /v1/instances/{ref}/media/{number}", func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		settled <- r.PathValue("number") + " " + string(body)
		w.WriteHeader(http.StatusBadGateway)
	})
	server := &http.Server{Handler: mux}
	served := make(chan struct{})
	go func() { server.Serve(ln); close(served) }()
	defer func() { server.Close(); <-served }()
	blank := func(args ...string) string {
		var complaint bytes.Buffer
		if code := Main(append([]string{"--socket", socket, "media", "blank"}, args...), strings.NewReader(""), io.Discard, &complaint); code == 0 {
			t.Errorf("media blank %q: exit code 0", args)
		}
		return complaint.String()
	}

	fixed, detach := attach("--read-only")
	if said := blank(fixed); !strings.Contains(said, "open "+fixed+": the device is for reading only") {
		t.Errorf("a device for reading only: %s", said)
	}
	detach() // once: another test may have the device next
	device, detach := attach()
	defer detach()
	if said := blank(device, "--remove"); !strings.Contains(said, "it is a block device, which cannot be removed") {
		t.Errorf("a device that is to be removed: %s", said)
	}
	if c, err := media.Inspect(f, 4<<20); err != nil || c.Files["payload.json"] == nil {
		t.Errorf("what was refused is changed: %v", err)
	}
	said := blank(device)
	if want := "report medium 4 of " + string(payload.Instance) + ": it is taken-away (blanked and verified: " + device + "), and that is not on record: "; !strings.Contains(said, want) ||
		!strings.Contains(said, "hint: when the server answers: imprint media forget "+string(payload.Instance)+" 4 ") {
		t.Errorf("it says %s", said)
	}
	if got := <-settled; !strings.HasPrefix(got, `4 {"state":"taken-away","detail":"blanked and verified: `+device) {
		t.Errorf("reported %s", got)
	}
	if b, err := os.ReadFile(path); err != nil || len(b) != 4<<20 || len(bytes.Trim(b, "\x00")) > 0 {
		t.Errorf("%d bytes, not all zero: %v", len(b), err)
	}
}

// A partition that an image has no room for on the disk that it is on, since it has
// holes, leaves the image with the partitions that it had.
func TestPartitionOnAFullDisk(t *testing.T) {
	t.Parallel()
	need.Root(t)
	unshare := need.Program(t, "unshare", "util-linux")
	need.Program(t, "sfdisk", "fdisk")
	socket := handsOut(t, bytes.Repeat([]byte("random"), 50000))
	script := `mount -t tmpfs -o size=400k none "$1" && cd "$1" && umask 077 && truncate -s 64M disk && ` +
		`echo "size=10M, name=root" | sfdisk -q -X gpt disk && sfdisk -d disk >before && head -c 200k /dev/urandom >filled; ` +
		`imprint --socket "$2" media web-1 --dialect nocloud --partition disk; code=$?; ` +
		`sfdisk --verify disk && sfdisk -d disk | diff before -; grep -c random disk; exit $code`
	var stderr bytes.Buffer
	cmd := exec.Command(unshare, "--mount", "sh", "-c", script, "sh", t.TempDir(), socket)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != exitCode(imprint.Errorf(imprint.Exhausted, "write", "disk", "full")) {
		t.Errorf("%v", err)
	}
	if got := stderr.String(); got != "imprint: write disk: no space left on device\n" {
		t.Errorf("%s", got)
	}
	if got := string(out); !strings.Contains(got, "No errors detected.\n") || !strings.HasSuffix(got, "\n0\n") || strings.Contains(got, "> ") {
		t.Errorf("the disk afterwards: %s", got)
	}
}

// handsOut starts a server whose media hold data, and returns its socket.
func handsOut(t *testing.T, data []byte) string {
	t.Helper()
	m := api.Medium{Label: "cidata", Time: time.Unix(2e9, 0), Files: map[string]imprint.Secret{"org.imprint/data": imprint.NewSecret(data)}}
	answer, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(t.TempDir(), "s")
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.Write(answer.Reveal()) })}
	served := make(chan struct{})
	go func() { server.Serve(ln); close(served) }()
	t.Cleanup(func() { server.Close(); <-served })
	return socket
}
