package daemon_test

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"go.yaml.in/yaml/v3"

	"imprint"
	"imprint/api"
	"imprint/internal/ca"
	"imprint/internal/daemon"
)

// process is a server in a process of its own.
type process struct {
	*api.Client
	cmd   *exec.Cmd
	ended chan struct{}
}

// start runs "imprint serve" on the site; wrap may change how.
func (s *site) start(t *testing.T, wrap func(*exec.Cmd)) *process {
	t.Helper()
	file := filepath.Join(filepath.Dir(s.config.Data), "server.yaml")
	text, err := yaml.Marshal(s.config)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := child(childImprint, "serve", "--config", file, "--log-level", "debug")
	cmd.Stdout, cmd.Stderr = s.log, s.log
	if wrap != nil {
		wrap(cmd)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &process{Client: api.NewUnix(s.socket()), cmd: cmd, ended: make(chan struct{})}
	go func() {
		defer close(p.ended)
		cmd.Wait()
	}()
	t.Cleanup(func() {
		p.Client.Close()
		p.kill(syscall.SIGKILL)
	})
	for deadline := time.Now().Add(patience); p.Ready(t.Context()) != nil; {
		select {
		case <-p.ended:
			t.Fatalf("the server ended:\n%s", s.log)
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			t.Fatalf("the server is not ready:\n%s", s.log)
		}
	}
	return p
}

// kill sends the server a signal and returns when it has ended.
func (p *process) kill(s syscall.Signal) {
	p.cmd.Process.Signal(s) // no news if it has ended
	<-p.ended
}

// A server dies in the middle of fifty enrolments and comes back: every machine
// ends with the one key that it had, and every certificate is on the log.
func TestKilledAmongEnrolments(t *testing.T) {
	t.Parallel()
	const machines = 50
	site := newSite(t)
	server := site.start(t, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	all := make([]*machine, machines)
	ids := make([]imprint.InstanceID, machines)
	for n := range all {
		created, err := server.Create(ctx, serialOnly(fmt.Sprintf("web-%d", n)), nil, false)
		if err != nil {
			t.Fatal(err)
		}
		ids[n] = created.Instance.ID
		all[n] = newMachine(t, site.config.Run, ids[n])
	}
	var done atomic.Int32
	middle := make(chan struct{})
	var enrolling sync.WaitGroup
	for n, m := range all {
		enrolling.Go(func() {
			if err := m.enrol(ctx); err != nil {
				t.Errorf("machine %d: %v", n, err)
			}
			if done.Add(1) == machines/5 {
				close(middle)
			}
		})
	}
	<-middle
	server.kill(syscall.SIGKILL)
	t.Logf("killed when %d of %d were enrolled", done.Load(), machines)
	server = site.start(t, nil)
	enrolling.Wait()

	held := map[imprint.Serial]imprint.KeyID{}
	for n, m := range all {
		i, err := server.Get(ctx, string(ids[n]))
		if err != nil {
			t.Fatal(err)
		}
		e := i.Enrolment
		if e.State != imprint.Closed || e.Claim.Key != m.keyID() || string(e.Certificate.DER) != string(m.leaf.Raw) {
			t.Errorf("machine %d is %s with key %s; it holds %s", n, e.State, e.Claim.Key, m.keyID())
			continue
		}
		held[e.Certificate.Serial] = e.Claim.Key
	}
	keys := logged(t, held, server.Client)
	for generation, byKey := range keys {
		if len(byKey) != 1 {
			t.Errorf("%s was certified for %d keys", generation, len(byKey))
		}
	}
}

// logged returns for which keys each generation of each machine has certificates
// on the logs of the servers, which verify. The certificates in held have to be
// there; the signed part of a log is a little behind.
func logged(t *testing.T, held map[imprint.Serial]imprint.KeyID, servers ...*api.Client) map[string]map[imprint.KeyID]bool {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		keys := map[string]map[imprint.KeyID]bool{}
		found := map[imprint.Serial]imprint.KeyID{}
		for _, server := range servers {
			for _, e := range entries(t, server) {
				if e.Kind != ca.EntryMachine {
					continue
				}
				found[e.Serial] = e.Key
				generation := fmt.Sprintf("%s/%d", e.Instance, e.Generation)
				if keys[generation] == nil {
					keys[generation] = map[imprint.KeyID]bool{}
				}
				keys[generation][e.Key] = true
			}
		}
		var missing []imprint.Serial
		for serial, key := range held {
			if found[serial] != key {
				missing = append(missing, serial)
			}
		}
		switch {
		case len(missing) == 0:
			return keys
		case time.Now().After(deadline):
			t.Fatalf("not on the log: %v", missing)
		}
	}
}

// entries copies the server's log, verifies the copy and returns what is on it.
func entries(t *testing.T, server *api.Client) []ca.LoggedEntry {
	t.Helper()
	var copied bytes.Buffer
	if err := server.Log(t.Context(), &copied); err != nil {
		t.Fatal(err)
	}
	log, verifier := fstest.MapFS{}, ""
	for archive := tar.NewReader(&copied); ; {
		h, err := archive.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(archive)
		if err != nil {
			t.Fatal(err)
		}
		if h.Name == daemon.VerifierFile {
			verifier = strings.TrimSpace(string(b))
			continue
		}
		log[h.Name] = &fstest.MapFile{Data: b}
	}
	if _, err := ca.VerifyLog(log, verifier, ca.VerifyOptions{}); err != nil {
		t.Fatal(err)
	}
	var all []ca.LoggedEntry
	for e, err := range ca.Entries(log, 0) {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, e)
	}
	return all
}
