package cli

import (
	"context"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/creack/pty"

	"imprint/internal/daemon"
)

// Whoever starts a server by hand is told where it is and what to do next.
func TestServeOnATerminal(t *testing.T) {
	t.Parallel()
	master, slave, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer master.Close()
	defer slave.Close()
	run, err := os.MkdirTemp("", "i") // a socket's path may have 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(run)
	config := daemon.DefaultConfig()
	config.Name, config.Data, config.Run, config.Operator = "host-1", filepath.Join(t.TempDir(), "data"), run, ""
	settings, err := config.Check()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		p := &program{out: io.Discard, err: slave}
		ended <- p.serve(ctx, settings, nil, slog.New(slog.DiscardHandler))
		slave.WriteString("ended")
	}()
	var said strings.Builder
	buf := make([]byte, 1024)
	for !strings.Contains(said.String(), "create -f FILE") && !strings.Contains(said.String(), "ended") {
		n, err := master.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		said.Write(buf[:n])
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	for _, want := range []string{"imprint serves machines on host-1", "Ctrl-C ends it", "export IMPRINT_SOCKET=" + settings.Socket} {
		if !strings.Contains(said.String(), want) {
			t.Errorf("nothing says %q: %q", want, said.String())
		}
	}
}
