package daemon_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"imprint"
)

// A server whose store was restored from a backup is what counts for a hypervisor
// that runs on: what was there at the backup is as it was then, what is newer is
// gone, and what was reported while the server was away arrives. That holds
// when the restored store is still behind what the hypervisor saw, when it has got
// ahead of it, and when the hypervisor itself is started again.
func TestHypervisorAfterRestore(t *testing.T) {
	t.Parallel()
	site := newSite(t)
	site.withHosts(t)
	server := site.start(t, nil)
	h := site.hypervisor(t)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the host's log:\n%s", h.log)
		}
	})
	h.start(t, site.joinFile(t, hypervisorName))
	private := map[string]imprint.Secret{"db-password": imprint.NewSecret([]byte("x"))}
	create := func(name string) imprint.InstanceID {
		t.Helper()
		created, err := server.Create(t.Context(), placedOn(name, hypervisorName), private, false)
		if err != nil {
			t.Fatal(err)
		}
		return created.Instance.ID
	}
	kept := create("web-1")
	h.untilConnected(t, server, "web-1")
	m := newMachine(t, h.run, kept)
	if err := m.enrol(t.Context()); err != nil {
		t.Fatal(err)
	}
	set := func(value string) {
		t.Helper()
		if err := server.PutParam(t.Context(), "web-1", "motd", imprint.NewSecret([]byte(value))); err != nil {
			t.Fatal(err)
		}
	}
	served := func(want string) {
		t.Helper()
		until(t, "the host to serve "+want, func() bool {
			b, err := m.Get(t.Context(), "imprint:param/motd")
			return err == nil && string(b) == want
		})
	}
	set("at the backup")
	served("at the backup")
	read := func() {
		t.Helper()
		if got, err := m.open(t.Context(), "db-password"); err != nil || !got.Equal(private["db-password"]) {
			t.Errorf("the private value: %v", err)
		}
	}
	read()
	before := len(reads(t, server, "web-1"))

	backup := filepath.Join(t.TempDir(), "etcd")
	store := filepath.Join(site.config.Data, "etcd")
	stop := func() { server.kill(syscall.SIGTERM) }
	stop()
	if err := os.CopyFS(backup, os.DirFS(store)); err != nil {
		t.Fatal(err)
	}
	server = site.start(t, nil)
	for n, c := range []struct {
		name           string
		ahead, restart bool
	}{{"behind", false, false}, {"ahead", true, false}, {"behind a host that starts", false, true}, {"ahead of a host that starts", true, true}} {
		t.Log(c.name)
		// Newer than the backup: a value, a machine.
		h.untilConnected(t, server, "web-1")
		for round := range 5 {
			set(fmt.Sprintf("lost %d.%d", n, round))
		}
		served(fmt.Sprintf("lost %d.4", n))
		lost := create("web-2")
		socket := func() bool { _, err := os.Stat(filepath.Join(h.run, string(lost))); return err == nil }
		until(t, "the socket of web-2", socket)

		const late = "news about instances are late"
		outages := strings.Count(h.log.String(), late)
		stop()
		until(t, "the host to notice", func() bool { return strings.Count(h.log.String(), late) > outages })
		read()
		if queued := h.queued(t); queued != 1 {
			t.Errorf("%d reports are on the disk", queued)
		}
		if err := os.RemoveAll(store); err != nil {
			t.Fatal(err)
		}
		if err := os.CopyFS(store, os.DirFS(backup)); err != nil {
			t.Fatal(err)
		}
		if c.restart {
			h.kill()
		} else if err := h.process.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		server = site.start(t, nil)
		want := "at the backup"
		if c.ahead {
			for round := range 40 {
				want = fmt.Sprintf("after the restore %d.%d", n, round)
				set(want)
			}
		}
		if c.restart {
			h.start(t, "")
		} else if err := h.process.cmd.Process.Signal(syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		served(want)
		until(t, "web-2 to be gone", func() bool { return !socket() })
		until(t, "the queue to be empty", func() bool { return h.queued(t) == 0 })
		if recorded := len(reads(t, server, "web-1")) - before; recorded != 1 {
			t.Errorf("%s: what was read meanwhile is %d times on the timeline", c.name, recorded)
		}
		// What is changed from then on arrives as ever.
		set(fmt.Sprintf("later %d", n))
		served(fmt.Sprintf("later %d", n))
	}
	if strings.Contains(h.log.String(), `"level":"ERROR"`) {
		t.Errorf("the host's log has an error")
	}
}
