package cli

import (
	"bytes"
	"errors"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"imprint"
	"imprint/api"
	"imprint/test/need"
)

// A medium that the disk has no room for leaves nothing behind, half-written or not.
func TestMediaOnAFullDisk(t *testing.T) {
	t.Parallel()
	need.Root(t)
	unshare := need.Program(t, "unshare", "util-linux")
	m := api.Medium{Label: "cidata", Time: time.Unix(2e9, 0), Files: map[string]imprint.Secret{"org.imprint/data": imprint.NewSecret(bytes.Repeat([]byte("random"), 50000))}}
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
	defer func() { server.Close(); <-served }()

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
