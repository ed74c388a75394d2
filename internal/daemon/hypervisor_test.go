package daemon_test

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"imprint"
	"imprint/api"
)

const hypervisorName = "hv2.lab.internal"

// hypervisor is another machine with "imprint host" on it.
type hypervisor struct {
	data, run, connect string
	config             string // a file; "" is none
	log                *buffer
	process            *process // nil while it does not run
}

// withHosts switches the check-in endpoint on, also for hypervisors.
func (s *site) withHosts(t *testing.T) {
	t.Helper()
	s.checkIn(t)
	s.config.Hosts.Domains = []string{"lab.internal"}
}

func (s *site) hypervisor(t *testing.T) *hypervisor {
	t.Helper()
	run, err := os.MkdirTemp("", "h")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(run) })
	return &hypervisor{data: filepath.Join(t.TempDir(), "host"), run: run, connect: s.config.CheckIn.Listen, log: &buffer{}}
}

// cli runs a verb against the site's server.
func (s *site) cli(args ...string) (string, error) {
	out, err := child(childImprint, append(args, "--socket", s.socket())...).CombinedOutput()
	return string(out), err
}

// joinFile adds the hypervisor to the site and returns its join file.
func (s *site) joinFile(t *testing.T, name string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "join.json")
	if out, err := s.cli("host", "add", name, "--out", file); err != nil {
		t.Fatalf("host add: %v\n%s", err, out)
	}
	return file
}

func (h *hypervisor) command(join string) *exec.Cmd {
	args := []string{"host", "--data", h.data, "--run", h.run, "--connect", h.connect, "--log-level", "debug"}
	if h.config != "" {
		args = append(args, "--config", h.config)
	}
	if join != "" {
		args = append(args, "--join", join)
	}
	cmd := child(childImprint, args...)
	cmd.Stdout, cmd.Stderr = h.log, h.log
	return cmd
}

func (h *hypervisor) start(t *testing.T, join string) {
	t.Helper()
	cmd := h.command(join)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &process{cmd: cmd, ended: make(chan struct{})}
	go func() {
		defer close(p.ended)
		cmd.Wait()
	}()
	t.Cleanup(func() { p.kill(syscall.SIGKILL) })
	h.process = p
}

func (h *hypervisor) kill() {
	h.process.kill(syscall.SIGKILL)
	h.process = nil
}

// queued returns how many reports are on the hypervisor's disk.
func (h *hypervisor) queued(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(h.data, "reports"))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return len(entries)
}

// until waits for something that is to happen.
func until(t *testing.T, what string, happened func() bool) {
	t.Helper()
	for deadline := time.Now().Add(2 * patience); !happened(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

func (h *hypervisor) untilConnected(t *testing.T, server *process, ref string) *api.Description {
	t.Helper()
	var d *api.Description
	until(t, "the host's connection; its log:\n"+h.log.String(), func() bool {
		var err error
		d, err = server.Describe(t.Context(), ref)
		return err == nil && d.Host.State == api.HostConnected
	})
	return d
}

func placedOn(name, host string) imprint.Spec {
	spec := serialOnly(name)
	spec.Host, spec.Pipes = imprint.HostName(host), []string{"install"}
	spec.Params = []imprint.Param{
		{Name: "motd", Visibility: imprint.Public, Value: "hello"},
		{Name: "db-password", Visibility: imprint.Private},
		{Name: "join-key", Visibility: imprint.SecretOnly},
	}
	return spec
}

// reads returns the details of the reads on an instance's timeline.
func reads(t *testing.T, server *process, ref string) (params []string) {
	t.Helper()
	events, err := server.Timeline(t.Context(), ref, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range events {
		if e.Kind == imprint.EventRead {
			params = append(params, e.Detail["param"])
		}
	}
	return params
}

// A machine on another hypervisor enrols over its host's socket with the host as
// witness, keeps being served while the server is away and over a crash of the
// host, and nothing that it did meanwhile is lost or told twice.
func TestHypervisor(t *testing.T) {
	t.Parallel()
	c := canaries{}
	site := newSite(t)
	site.withHosts(t)
	server := site.start(t, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 6*patience)
	defer cancel()
	h := site.hypervisor(t)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the host's log:\n%s", h.log)
		}
	})
	join := site.joinFile(t, hypervisorName)
	values := map[string]imprint.Secret{
		"db-password": imprint.NewSecret([]byte(c.fresh("private value"))),
		"join-key":    imprint.NewSecret([]byte(c.fresh("secret value"))),
	}

	// Before the host is there its secrets have nowhere to go.
	created, err := server.Create(ctx, placedOn("web-1", hypervisorName), values, false)
	if err != nil {
		t.Fatal(err)
	}
	if len(created.Missing) != 1 || created.Missing[0] != "join-key" {
		t.Errorf("missing %q", created.Missing)
	}
	id := created.Instance.ID
	err = server.PutParam(ctx, "web-1", "join-key", values["join-key"])
	wantKind(t, err, imprint.Unavailable)
	if !strings.Contains(err.Error(), hypervisorName) {
		t.Errorf("the error %q does not name the host", err)
	}
	if out, err := site.cli("get", "web-1"); err != nil || !strings.Contains(out, hypervisorName+" (not connected)") {
		t.Errorf("get: %v\n%s", err, out)
	}

	h.start(t, join)
	d := h.untilConnected(t, server, "web-1")
	if d.Host.Since.IsZero() || !strings.HasPrefix(d.Host.Address, "127.0.0.1:") {
		t.Errorf("the host is %+v", d.Host)
	}
	if err := server.PutParam(ctx, "web-1", "join-key", values["join-key"]); err != nil {
		t.Fatal(err)
	}
	m := newMachine(t, h.run, id)
	c.key(t, "machine's private key", m.key)
	if err := m.request(ctx); err != nil {
		t.Fatal(err, h.log.String())
	}
	if err := m.take(ctx); err != nil {
		t.Fatal(err)
	}
	if b, err := m.Get(ctx, "imprint:param/db-password"); err != nil || string(b) != string(values["db-password"].Reveal()) {
		t.Errorf("the private value: %q, %v", b, err)
	}
	if err := m.confirm(ctx); err != nil {
		t.Fatal(err)
	}
	one, err := server.Get(ctx, "web-1")
	if err != nil {
		t.Fatal(err)
	}
	if claim := one.Enrolment.Claim; claim.Tier != imprint.TierHost || claim.Witness != hypervisorName {
		t.Errorf("the claim is %+v", claim)
	}
	for name, want := range values {
		if got, err := m.open(ctx, name); err != nil || !got.Equal(want) {
			t.Errorf("%s, sealed to the key: %v", name, err)
		}
	}
	out, err := site.cli("describe", "web-1")
	if err != nil || !strings.Contains(out, hypervisorName+"; connected since") || !strings.Contains(out, h.run) || strings.Contains(out, "not at hand") {
		t.Errorf("describe: %v\n%s", err, out)
	}

	// Messages go both ways.
	exchange(t, server.Client, m, "imprint:pipe/install", "install")
	before := reads(t, server, "web-1")

	// The server dies. The machine reads on, and says that it is ready.
	server.kill(syscall.SIGKILL)
	until(t, "the host to notice", func() bool { return strings.Contains(h.log.String(), "news about instances are late") })
	if b, err := m.Get(ctx, "imprint:param/motd"); err != nil || string(b) != "hello" {
		t.Errorf("a public value without the server: %q, %v", b, err)
	}
	if got, err := m.open(ctx, "db-password"); err != nil || !got.Equal(values["db-password"]) {
		t.Errorf("a private value without the server: %v", err)
	}
	if got, err := m.open(ctx, "join-key"); err != nil || !got.Equal(values["join-key"]) {
		t.Errorf("a secret value without the server: %v", err)
	}
	if n := h.queued(t); n != 2 {
		t.Errorf("%d reports are on the disk", n)
	}

	// The host dies too, and comes back on its own.
	h.kill()
	h.start(t, join)
	if b, err := m.Get(ctx, "imprint:payload"); err != nil || !strings.Contains(string(b), string(id)) {
		t.Errorf("the payload after a restart without the server: %q, %v", b, err)
	}
	if b, err := m.Get(ctx, "imprint:param/motd"); err != nil || string(b) != "hello" {
		t.Errorf("a public value after a restart without the server: %q, %v", b, err)
	}
	if got, err := m.open(ctx, "db-password"); err != nil || !got.Equal(values["db-password"]) {
		t.Errorf("a private value after a restart without the server: %v", err)
	}
	if _, err := m.open(ctx, "join-key"); err == nil || !strings.Contains(err.Error(), "given to the host again") {
		t.Errorf("a secret value after a restart: %v", err)
	}
	stranger := newMachine(t, h.run, id)
	if err := stranger.request(ctx); err == nil || !later(err) {
		t.Errorf("an enrolment without the server: %v", err)
	}
	if err := m.ready(ctx); err != nil {
		t.Error(err)
	}
	if n := h.queued(t); n != 4 {
		t.Errorf("%d reports are on the disk", n)
	}

	// The server comes back, and has everything, in order and once.
	server = site.start(t, nil)
	d = h.untilConnected(t, server, "web-1")
	until(t, "the queue to be empty", func() bool { return h.queued(t) == 0 })
	after := reads(t, server, "web-1")
	if got, want := fmt.Sprint(after[len(before):]), "[db-password join-key db-password]"; got != want {
		t.Errorf("the reads meanwhile are %s, not %s", got, want)
	}
	if one, err = server.Get(ctx, "web-1"); err != nil || one.Enrolment.State != imprint.Closed {
		t.Errorf("the enrolment is %+v, %v", one.Enrolment, err)
	}
	if len(d.Missing) != 1 || d.Missing[0] != "join-key" {
		t.Errorf("missing %q", d.Missing)
	}
	if out, err := site.cli("describe", "web-1"); err != nil || !strings.Contains(out, "join-key (secret; not at hand: give it with imprint set)") {
		t.Errorf("describe: %v\n%s", err, out)
	}
	if err := server.PutParam(ctx, "web-1", "join-key", values["join-key"]); err != nil {
		t.Fatal(err)
	}
	if got, err := m.open(ctx, "join-key"); err != nil || !got.Equal(values["join-key"]) {
		t.Errorf("the secret value that was given again: %v", err)
	}

	// Revocation is for now, on the stream that is open.
	if _, err := server.Revoke(ctx, "hosts/hv2-lab-internal", "stolen"); err != nil {
		t.Fatal(err)
	}
	until(t, "the host to be refused", func() bool {
		d, err := server.Describe(ctx, "web-1")
		return err == nil && d.Host.State == api.HostAway && strings.Contains(h.log.String(), "generation 1 is revoked")
	})
	for name := range values {
		if _, err := m.open(ctx, name); err == nil {
			t.Errorf("%s leaves a host that was revoked", name)
		}
	}

	// What is on the disks and in the logs.
	h.kill()
	server.kill(syscall.SIGKILL)
	c.search(t, "the host's log", []byte(h.log.String()))
	c.search(t, "the server's log", []byte(site.log.String()))
	if n := c.searchFiles(t, h.data, ""); n < 5 {
		t.Errorf("only %d files were searched", n)
	}
	c.searchFiles(t, filepath.Dir(site.config.Data), "")
	modes(t, h.data)
}

// modes checks that nothing below dir is anybody else's to read.
func modes(t *testing.T, dir string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "key.pem") && !strings.HasSuffix(path, "kek") && path != dir {
			return err
		}
		info, err := d.Info()
		if err == nil && info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// A join file that two hypervisors use makes neither of them one.
func TestJoinFileUsedTwice(t *testing.T) {
	t.Parallel()
	site := newSite(t)
	site.withHosts(t)
	server := site.start(t, nil)
	if _, err := server.Create(t.Context(), placedOn("web-1", hypervisorName), map[string]imprint.Secret{"db-password": imprint.NewSecret([]byte("x"))}, false); err != nil {
		t.Fatal(err)
	}
	join := site.joinFile(t, hypervisorName)
	first, second := site.hypervisor(t), site.hypervisor(t)
	first.start(t, join)
	first.untilConnected(t, server, "web-1")
	cmd := second.command(join)
	if err := cmd.Run(); err == nil {
		t.Error("a second hypervisor joined")
	}
	until(t, "the first to be refused", func() bool {
		d, err := server.Describe(t.Context(), "web-1")
		return err == nil && d.Host.State == api.HostAway
	})
	if i, err := server.Get(t.Context(), "hosts/hv2-lab-internal"); err != nil || i.Enrolment.State != imprint.InDispute {
		t.Errorf("%+v, %v", i, err)
	}
	// With a new life it joins again.
	if _, err := server.Rebirth(t.Context(), "hosts/hv2-lab-internal"); err != nil {
		t.Fatal(err)
	}
	again := filepath.Join(t.TempDir(), "again.json")
	if out, err := site.cli("host", "token", hypervisorName, "--out", again); err != nil {
		t.Fatal(out, err)
	}
	first.kill()
	first.start(t, again)
	first.untilConnected(t, server, "web-1")
}

// What cannot be a hypervisor is refused with a reason.
func TestHostsThatAreRefused(t *testing.T) {
	t.Parallel()
	site := newSite(t)
	site.withHosts(t)
	site.config.Name = "host-1.lab.internal"
	site.start(t, nil)
	dir := t.TempDir()
	for name, want := range map[string]string{
		"host-1.lab.internal":                 "a server has that name",
		"hv2.elsewhere.example":               "outside the domains",
		"HV2.lab.internal":                    "lower-case",
		strings.Repeat("a.", 60) + "internal": "characters",
	} {
		out, err := site.cli("host", "add", name, "--out", filepath.Join(dir, "join.json"))
		if err == nil || !strings.Contains(out, want) || !strings.Contains(out, "hint: ") {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
	site.joinFile(t, hypervisorName)
	out, err := site.cli("host", "add", hypervisorName, "--out", filepath.Join(dir, "join.json"))
	if err == nil || !strings.Contains(out, "imprint host token "+hypervisorName) {
		t.Errorf("added twice: %v\n%s", err, out)
	}
	if _, err := os.Stat(filepath.Join(dir, "join.json")); err == nil {
		t.Error("a refused host left a file behind")
	}

	// A machine's payload is no join file.
	if out, err := site.cli("create", "-f", write(t, dir, "web.yaml", "name: web-1\nchannels: [est]\n")); err != nil {
		t.Fatal(out)
	}
	payload := filepath.Join(dir, "payload.json")
	if out, err := site.cli("payload", "web-1", "--out", payload); err != nil {
		t.Fatal(out)
	}
	h := site.hypervisor(t)
	if err := h.command(payload).Run(); err == nil || !strings.Contains(h.log.String(), "not of a hypervisor") {
		t.Errorf("joined with a machine's payload: %v\n%s", err, h.log)
	}
	if out, err := site.cli("create", "-f", write(t, dir, "hv.yaml", "name: hv9\ntenant: hosts\ndnsNames: [hv2.lab.internal]\nchannels: [est]\n")); err == nil || !strings.Contains(out, "hv2-lab-internal") {
		t.Errorf("a second machine of the hypervisor's name: %v\n%s", err, out)
	}
}

func write(t *testing.T, dir, name, content string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
