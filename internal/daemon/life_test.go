package daemon_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	"imprint"
	"imprint/api"
	"imprint/internal/daemon"
	"imprint/internal/guest"
)

// A machine that waits for approval does not mind that the server is restarted.
func TestApprovalAfterARestart(t *testing.T) {
	t.Parallel()
	site := newSite(t)
	s := site.serve(t)
	spec := serialOnly("web-1")
	spec.Policy.Approval = true
	i := s.create(t, spec, nil)
	m := newMachine(t, site.config.Run, i.ID)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := m.request(ctx); err != nil {
		t.Fatal(err)
	}
	if err := m.take(ctx); imprint.KindOf(err) != imprint.NotFound {
		t.Fatalf("a certificate without approval: %v", err)
	}
	s.stop()

	s = site.serve(t)
	if i, err := s.Approve(ctx, "web-1"); err != nil || i.Enrolment.Certificate == nil {
		t.Fatalf("Approve: %v", err)
	}
	if err := m.enrol(ctx); err != nil {
		t.Fatal(err)
	}
	after := s.get(t, "web-1")
	if after.Enrolment.State != imprint.Closed || after.Enrolment.Claim.Key != m.keyID() || after.Enrolment.Claim.ApprovedBy == "" {
		t.Errorf("the machine is %+v", after.Enrolment)
	}
}

// The agent itself enrols over a terminal, as over a serial port.
func TestTheAgentEnrolsOverATerminal(t *testing.T) {
	t.Parallel()
	site := newSite(t)
	site.config.Operator = fmt.Sprintf("127.0.0.1:%d", freePort(t))
	s := site.serve(t)
	spec := serialOnly("web-1")
	spec.Params = []imprint.Param{{Name: "db-password", Visibility: imprint.Private}, {Name: "join-key", Visibility: imprint.SecretOnly}}
	i := s.create(t, spec, map[string]imprint.Secret{
		"db-password": imprint.NewSecret([]byte("private-value")), "join-key": imprint.NewSecret([]byte("secret-value")),
	})
	root := memoryDir(t)
	tty := filepath.Join(root, "dev", "ttyS1")
	if err := os.MkdirAll(filepath.Dir(tty), 0o755); err != nil {
		t.Fatal(err)
	}
	plug(t, tty, filepath.Join(site.config.Run, string(i.ID), "serial.sock"))
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	said := &buffer{}
	if err := guest.New(guest.Options{Root: root, Once: true, Wait: patience}, guest.NewConsole(said)).Run(ctx); err != nil {
		t.Fatalf("%v\n%s", err, said)
	}
	for name, want := range map[string]string{"db-password": "private-value", "join-key": "secret-value"} {
		got, err := os.ReadFile(filepath.Join(guest.Layout{Root: root}.Params(), name))
		if err != nil || string(got) != want {
			t.Errorf("the machine has %s = %q, %v", name, got, err)
		}
	}
	if after := s.get(t, "web-1"); after.Enrolment.State != imprint.Closed || after.Enrolment.Claim.Tier != imprint.TierHost {
		t.Errorf("the machine is %+v", after.Enrolment)
	}
	out := scrape(t, s)
	for _, line := range []string{
		`imprint_certificates_signed_total{tenant="default",tier="3"} 1`,
		`imprint_enrolments_total{channel="serial",outcome="ok"} 1`,
		`imprint_reports_total{channel="serial",kind="confirmed",outcome="ok"} 1`,
		"imprint_store_up 1",
	} {
		if !strings.Contains(out, line) {
			t.Errorf("the metrics lack %q:\n%s", line, out)
		}
	}
}

// memoryDir is a temporary directory in which the agent may keep parameters.
func memoryDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "imprint-daemon-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// plug makes path a terminal that is joined with a socket until the test ends.
func plug(t *testing.T, path, socket string) {
	t.Helper()
	master, slave, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(slave.Name(), path); err != nil {
		t.Fatal(err)
	}
	// Package pty made the file blocking; closing it is to end a read.
	fd, err := unix.Dup(int(master.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		t.Fatal(err)
	}
	master.Close()
	master = os.NewFile(uintptr(fd), "pty")
	conn := dial(t, socket)
	ended := join(master, conn)
	t.Cleanup(func() {
		conn.Close()
		master.Close()
		slave.Close()
		<-ended
		<-ended
	})
}

// A clock that must be wrong keeps the server from starting, and nothing is lost.
func TestWrongClocks(t *testing.T) {
	t.Parallel()
	site := newSite(t)
	at := func(now time.Time) error {
		o := site.options()
		o.Now = func() time.Time { return now }
		d, err := daemon.Open(t.Context(), site.settings(t), o)
		if err == nil {
			d.Close()
		}
		return err
	}
	wantKind(t, at(time.Unix(100, 0)), imprint.Unavailable)
	if _, err := os.Stat(site.config.Data); !os.IsNotExist(err) {
		t.Errorf("a server of 1970 made its data directory: %v", err)
	}

	s := site.serve(t)
	spec := serialOnly("web-1")
	spec.Policy.Window = imprint.Duration(time.Hour)
	before := s.create(t, spec, nil)
	s.stop()
	for _, now := range []time.Time{time.Unix(100, 0), time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC)} {
		err := at(now)
		wantKind(t, err, imprint.Unavailable)
		if year := now.UTC().Format("2006-01-02"); !strings.Contains(err.Error(), year) {
			t.Errorf("error %q does not say %s", err, year)
		}
	}
	s = site.serve(t)
	if after := s.get(t, "web-1"); after.Revision != before.Revision || after.Enrolment.State != imprint.Reserved {
		t.Errorf("the reservation is %s at revision %d; it was at %d", after.Enrolment.State, after.Revision, before.Revision)
	}
}

// After the issuing CA's end nothing is issued, for a reason that is told, until
// the CA is certified anew; the machine then gets what it asked for.
func TestTheIssuingCAEnded(t *testing.T) {
	t.Parallel()
	site := newSite(t)
	s := site.serve(t)
	s.stop()

	o := site.options()
	o.Now = func() time.Time { return time.Now().AddDate(6, 0, 0) }
	ready := make(chan struct{})
	o.Serving = func() { close(ready) }
	d, err := daemon.Open(t.Context(), site.settings(t), o)
	if err != nil {
		t.Fatal(err)
	}
	s = site.run(t, d, ready)
	if !strings.Contains(site.log.String(), "the issuing CA is not valid now") {
		t.Error("the log does not say that the issuing CA has ended")
	}
	i := s.create(t, serialOnly("web-1"), nil)
	m := newMachine(t, site.config.Run, i.ID)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := m.request(ctx); err == nil || !strings.Contains(err.Error(), "CA's own end") {
		t.Fatalf("request: %v", err)
	}
	if _, err := s.Reissue(ctx, imprint.DefaultTenant, imprint.Secret{}); err != nil {
		t.Fatalf("Reissue: %v", err)
	}
	if err := m.enrol(ctx); err != nil {
		t.Fatalf("after the reissue: %v", err)
	}
	s.waitFor(t, "web-1", func(i *api.Instance) bool { return i.Enrolment.State == imprint.Closed })
}
