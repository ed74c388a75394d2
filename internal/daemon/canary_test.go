package daemon_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"imprint"
	"imprint/internal/guest"
)

// canaries are values that must be seen nowhere, by what they are.
type canaries map[string][]byte

// fresh adds a value of its own to the canaries.
func (c canaries) fresh(what string) string {
	value := what + "-canary-" + rand.Text()
	c[what] = []byte(value)
	return value
}

// key adds a private key: its number, and its usual encoding.
func (c canaries) key(t *testing.T, what string, key *ecdsa.PrivateKey) {
	t.Helper()
	number, err := key.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	c[what] = number
}

// forms are the ways in which a value may be written down: as it is, in
// hexadecimal, and in base64 at any offset within something longer.
func forms(value []byte) [][]byte {
	all := [][]byte{value, []byte(hex.EncodeToString(value)), []byte(strings.ToUpper(hex.EncodeToString(value)))}
	for _, enc := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
		for offset := range 3 {
			text := enc.EncodeToString(append(make([]byte, offset), value...))
			// The characters at both ends depend on what stands beside the value.
			all = append(all, []byte(text[(offset*8+5)/6:len(text)-2]))
		}
	}
	return all
}

// search reports every canary that is in content.
func (c canaries) search(t *testing.T, where string, content []byte) {
	t.Helper()
	for what, value := range c {
		for _, form := range forms(value) {
			if at := bytes.Index(content, form); at >= 0 {
				t.Errorf("%s: the %s is at byte %d, as %.12q…", where, what, at, form)
				break
			}
		}
	}
}

// searchFiles searches all files below dir but the one called except, and
// returns how many there are.
func (c canaries) searchFiles(t *testing.T, dir, except string) (files int) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || path == except {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		files++
		c.search(t, path, b)
		c.search(t, "the name of "+path, []byte(path))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// The search finds what it is to find, in every form.
func TestTheSearchFinds(t *testing.T) {
	t.Parallel()
	value := []byte("private-canary-0123456789")
	for offset := range 4 {
		longer := slices.Concat(bytes.Repeat([]byte("x"), offset), value, []byte(" and more"))
		for _, written := range []string{
			string(longer), fmt.Sprintf("%x", longer), fmt.Sprintf("%X", longer),
			base64.StdEncoding.EncodeToString(longer), base64.URLEncoding.EncodeToString(longer),
		} {
			found := false
			for _, form := range forms(value) {
				found = found || strings.Contains(written, string(form))
			}
			if !found {
				t.Errorf("not found at offset %d in %s", offset, written)
			}
		}
	}
}

// cores starts a program so that the kernel writes a core file when it aborts.
// A server in this process gives up the right to that for all its children, so
// the tests that need it run before the parallel ones.
func cores(cmd *exec.Cmd, dir string) {
	cmd.Args = append([]string{"sh", "-c", `ulimit -c unlimited; exec "$0" "$@"`, cmd.Path}, cmd.Args[1:]...)
	cmd.Path = "/bin/sh"
	cmd.Dir = dir
	cmd.Env = append(cmd.Env, "GOTRACEBACK=crash")
}

// Everything that a server does with values that must not be seen, and then a
// search for them in everything that others can look at.
func TestCanaries(t *testing.T) {
	c := canaries{}
	site := newSite(t)
	site.checkIn(t)
	operator := fmt.Sprintf("127.0.0.1:%d", freePort(t))
	site.config.Operator = operator
	dir, carry := filepath.Dir(site.config.Data), t.TempDir()
	working := t.TempDir() // where a core file would be
	server := site.start(t, func(cmd *exec.Cmd) { cores(cmd, working) })
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()

	// What the command line prints is searched as well.
	var printed bytes.Buffer
	write := func(name, content string) string {
		path := filepath.Join(carry, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	try := func(in string, args ...string) error {
		cmd := child(childImprint, append(args, "--socket", site.socket())...)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(in), &printed, &printed
		return cmd.Run()
	}
	run := func(in string, args ...string) {
		t.Helper()
		if err := try(in, args...); err != nil {
			t.Fatalf("%v: %v\n%s", args, err, printed.String())
		}
	}
	refused := func(in string, args ...string) {
		t.Helper()
		if try(in, args...) == nil {
			t.Errorf("%v was not refused", args)
		}
	}

	manifest := write("web.yaml", fmt.Sprintf(`
name: web-1
channels: [serial]
params:
  private: {db-password: {file: %s}}
  secret: {join-key: {file: %s}}
---
name: web-2
params:
  private: {db-password: {file: %[1]s}}
  secret: {join-key: {file: %[2]s}}
`, write("private", c.fresh("private value")), write("secret", c.fresh("secret value"))))
	run("", "create", "-f", manifest)
	run(c.fresh("changed private value"), "set", "web-1", "db-password")
	run(c.fresh("changed secret value"), "set", "web-1", "join-key")

	// Mistakes must not repeat what was wrong.
	wrong := c.fresh("wrong value")
	refused("", "create", "-f", write("unknown.yaml", "name: web-3\nparms: {private: {a: "+wrong+"}}\n"))
	refused("", "create", "-f", write("inline.yaml", "name: web-3\nparams: {private: {a: {fiel: "+wrong+"}}}\n"))
	refused("", "create", "-f", write("syntax.yaml", "name: web-3\nparams:\n  private:\n    a: *"+wrong+"\n"))
	refused(wrong, "set", "web-1", "unknown")
	refused(strings.Repeat(wrong, 1+imprint.MaxParamLen/len(wrong)), "set", "web-1", "db-password")
	refused("", "ca", "reissue", "--root-key", write("wrong.pem", "-----BEGIN PRIVATE KEY-----\n"+base64.StdEncoding.EncodeToString([]byte(wrong))+"\n-----END PRIVATE KEY-----\n"))
	post(t, ctx, site.socket(), "/v1/instances", `{"spec":{"name":"web-3","params":[{"name":"a","visibility":"private"}]},"values":{"a":"`+wrong+`"}}`)
	post(t, ctx, site.socket(), "/v1/instances", `{"spec":{"name":"web-3"},"values":"`+wrong+`"}`)

	// web-1 enrols over its serial port and uses all of it.
	one, err := server.Get(ctx, "web-1")
	if err != nil {
		t.Fatal(err)
	}
	m := newMachine(t, site.config.Run, one.ID)
	c.key(t, "machine's private key", m.key)
	if err := m.request(ctx); err != nil {
		t.Fatal(err)
	}
	if err := m.take(ctx); err != nil {
		t.Fatal(err)
	}
	if b, err := m.Get(ctx, "imprint:param/db-password"); err != nil || string(b) != string(c["changed private value"]) {
		t.Errorf("the private value on a private channel: %q, %v", b, err)
	}
	if b, err := m.Get(ctx, "imprint:param/join-key"); err == nil {
		t.Errorf("the secret value in clear: %q", b)
	}
	if err := m.Put(ctx, "imprint:confirmation", []byte(wrong)); err == nil {
		t.Error("a confirmation that is none was accepted")
	}
	if err := m.Put(ctx, "imprint:request", []byte(wrong)); err == nil {
		t.Error("a request that is none was accepted")
	}
	if err := m.confirm(ctx); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"db-password": "changed private value", "join-key": "changed secret value"} {
		if value, err := m.open(ctx, name); err != nil || string(value.Reveal()) != string(c[want]) {
			t.Errorf("%s, sealed to the key: %v", name, err)
		}
	}
	if err := m.Put(ctx, "imprint:pipe", []byte(c.fresh("message from the machine"))); err != nil {
		t.Error(err)
	}
	if got, _, err := server.ReadPipe(ctx, "web-1", imprint.DefaultPipe, 0); err != nil || string(got) != string(c["message from the machine"]) {
		t.Errorf("the message is %q, %v", got, err)
	}
	run(c.fresh("message to the machine"), "pipe", "write", "web-1")
	if got, err := m.Get(ctx, "imprint:pipe"); err != nil || !bytes.Contains(got, c["message to the machine"]) {
		t.Errorf("the message is %q, %v", got, err)
	}
	if err := m.ready(ctx); err != nil {
		t.Fatal(err)
	}

	// web-2 enrols over the network with a payload that was carried there.
	refusedToken := c.fresh("wrong token")
	payload := filepath.Join(carry, "payload.json")
	run("", "payload", "web-2", "--out", payload)
	c["token"] = tokenOf(t, payload)
	forged := filepath.Join(carry, "forged.json")
	b, err := os.ReadFile(payload)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(forged, bytes.Replace(b, c["token"], []byte(refusedToken), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	agent := func(file string) error {
		root := memoryDir(t)
		said := &buffer{}
		err := guest.New(guest.Options{Root: root, PayloadFile: file, Once: true, Wait: patience}, guest.NewConsole(said)).Run(ctx)
		printed.WriteString(said.String())
		return err
	}
	if agent(forged) == nil {
		t.Error("a wrong token was accepted")
	}
	if err := agent(payload); err != nil {
		t.Fatal(err)
	}

	// Keys are rotated, and the root key is taken out.
	before, err := os.ReadFile(filepath.Join(site.config.Data, "kek"))
	if err != nil {
		t.Fatal(err)
	}
	run("", "seal", "rotate")
	after, err := os.ReadFile(filepath.Join(site.config.Data, "kek"))
	if err != nil {
		t.Fatal(err)
	}
	c["earlier key-encryption key"], c["key-encryption key"] = keyEncryptionKey(t, before), keyEncryptionKey(t, after)
	rootFile := filepath.Join(carry, "root.pem")
	run("", "ca", "export-root", "--out", rootFile)
	c.key(t, "root key", rootKey(t, rootFile))
	c["log key"] = []byte("PRIVATE+KEY+imprint/") // how a log's key begins

	for _, args := range [][]string{
		{"get"}, {"get", "-o", "json"}, {"get", "web-1", "-o", "yaml"}, {"describe", "web-1", "-o", "json"}, {"describe", "web-2"},
		{"watch", "web-1", "--until", "closed", "-o", "json"}, {"ca", "show", "-o", "json"}, {"log", "verify"},
		{"log", "copy", filepath.Join(dir, "copy")},
	} {
		run("", args...)
	}
	if i, err := server.Get(ctx, "web-2"); err != nil || i.Enrolment.State != imprint.Closed {
		t.Errorf("web-2: %+v, %v", i, err)
	}

	resp, err := http.Get("http://" + operator + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	metrics, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil || !bytes.Contains(metrics, []byte(`imprint_enrolments_total{channel="est",outcome="ok"}`)) {
		t.Errorf("the metrics lack an enrolment over the network (%v):\n%s", err, metrics)
	}
	c.search(t, "the metrics", metrics)
	c.search(t, "what programs printed", printed.Bytes())
	proc := fmt.Sprintf("/proc/%d/", server.cmd.Process.Pid)
	for _, name := range []string{"cmdline", "environ", "comm", "status"} {
		content, err := os.ReadFile(proc + name)
		if err != nil && !os.IsPermission(err) {
			t.Fatal(err)
		}
		c.search(t, proc+name, content)
	}

	// The server aborts, and leaves no core file.
	server.kill(syscall.SIGABRT)
	c.search(t, "the server's log", []byte(site.log.String()))
	files := c.searchFiles(t, dir, filepath.Join(site.config.Data, "kek"))
	c.searchFiles(t, site.config.Run, "")
	c.searchFiles(t, working, "")
	if files < 10 {
		t.Errorf("only %d files were searched", files)
	}
	if found := coreFiles(t, working); len(found) > 0 {
		t.Errorf("core files: %v", found)
	}
	if !strings.Contains(site.log.String(), `"level":"DEBUG"`) || !strings.Contains(site.log.String(), "SIGABRT") {
		t.Error("the log is not the whole one")
	}
}

// Without the server's precautions the same abort leaves a core file, where the
// kernel writes any: the search above does not pass for want of a chance.
func TestAbortsLeaveCoreFiles(t *testing.T) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &limit); err != nil || limit.Max == 0 {
		t.Skip("this process may not have core files, so no child can")
	}
	if pattern, err := os.ReadFile("/proc/sys/kernel/core_pattern"); err != nil || !strings.HasPrefix(string(pattern), "core") {
		t.Skipf("the kernel keeps core files elsewhere: %s", pattern)
	}
	dir := t.TempDir()
	cmd := child(childIdle)
	cores(cmd, dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	cmd.Process.Signal(syscall.SIGABRT)
	cmd.Wait()
	if len(coreFiles(t, dir)) == 0 {
		t.Error("no core file: the canaries' test proves nothing about them")
	}
}

func coreFiles(t *testing.T, dir string) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(dir, "core*"))
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// post sends the control API what its client never would; it has to be refused.
func post(t *testing.T, ctx context.Context, socket, path, body string) {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
		DisableKeepAlives: true,
	}, Timeout: 10 * time.Second}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://imprint"+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	answer, _ := io.ReadAll(resp.Body)
	if resp.StatusCode < 400 {
		t.Errorf("POST %s was not refused: %s", path, answer)
	}
	if strings.Contains(string(answer), "canary") {
		t.Errorf("POST %s answers with the value: %s", path, answer)
	}
}

func tokenOf(t *testing.T, file string) []byte {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var p struct{ Token string }
	if err := json.Unmarshal(b, &p); err != nil || p.Token == "" {
		t.Fatalf("no token in the payload: %v", err)
	}
	return []byte(p.Token)
}

func keyEncryptionKey(t *testing.T, file []byte) []byte {
	t.Helper()
	for line := range strings.Lines(string(file)) {
		if text, ok := strings.CutPrefix(strings.TrimSpace(line), "imprint-kek-v1 "); ok {
			key, err := base64.StdEncoding.DecodeString(text)
			if err != nil {
				t.Fatal(err)
			}
			return key
		}
	}
	t.Fatal("no key in the key file")
	return nil
}

func rootKey(t *testing.T, file string) *ecdsa.PrivateKey {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(b)
	if block == nil {
		t.Fatal("the root key is not PEM")
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return key.(*ecdsa.PrivateKey)
}
