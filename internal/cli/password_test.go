package cli

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/creack/pty"
	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"

	"imprint"
	"imprint/api"
	"imprint/internal/dialect"
	"imprint/internal/triton"
)

// keyDir has one RSA key in the forms that ssh-keygen and openssl write, and
// others that are of no use. Those with "encrypted" in their name have the passphrase.
const (
	keyDir        = "testdata/keys"
	keyPassphrase = "correct horse"
)

// publicKey reads an RSA public key as the guest gets it.
func publicKey(file string) (*rsa.PublicKey, error) {
	line, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	key, _, _, _, err := ssh.ParseAuthorizedKey(line)
	if err != nil {
		return nil, err
	}
	return key.(ssh.CryptoPublicKey).CryptoPublicKey().(*rsa.PublicKey), nil
}

// posted is what a guest posts that made up a password.
func posted(key *rsa.PublicKey, password string) ([]byte, error) {
	ciphertext, err := rsa.EncryptPKCS1v15(rand.Reader, key, []byte(password)) //nolint:staticcheck // it is cloudbase-init's
	return []byte(base64.StdEncoding.EncodeToString(ciphertext)), err
}

// post NAME KEY.pub PASSWORD posts a password up the instance's serial port, as
// the machine would. "-" in the place of KEY.pub posts the password as it is.
func post(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 3 {
		ts.Fatalf("usage: post NAME KEY.pub PASSWORD")
	}
	text := []byte(args[2])
	if args[1] != "-" {
		key, err := publicKey(ts.MkAbs(args[1]))
		ts.Check(err)
		text, err = posted(key, args[2])
		ts.Check(err)
	}
	guestPuts(ts, args[0], dialect.KeyPassword, text)
}

// put is a script's "put NAME KEY VALUE": root of the machine sets a key over its
// serial port.
func put(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 3 {
		ts.Fatalf("usage: put NAME KEY VALUE")
	}
	guestPuts(ts, args[0], args[1], []byte(args[2]))
}

func guestPuts(ts *testscript.TestScript, name, key string, value []byte) {
	server := api.NewUnix(ts.Getenv("IMPRINT_SOCKET"))
	defer server.Close()
	one, err := server.Get(context.Background(), name)
	ts.Check(err)
	client := triton.NewClient(func(context.Context) (io.ReadWriteCloser, error) {
		conn, err := net.Dial("unix", filepath.Join(ts.Getenv("RUN"), string(one.ID), "serial.sock"))
		if err != nil { // the server binds it a moment after it stored the reservation
			return nil, imprint.Errorf(imprint.Unavailable, "dial", "serial port", "%w", err)
		}
		return conn, nil
	}, triton.ClientOptions{})
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	ts.Check(client.Put(ctx, key, value))
}

func TestEveryFormOfAKeyOpensThePassword(t *testing.T) {
	t.Parallel()
	key, err := publicKey(filepath.Join(keyDir, "openssh.pub"))
	if err != nil {
		t.Fatal(err)
	}
	text, err := posted(key, "Pässwörd 1!")
	if err != nil {
		t.Fatal(err)
	}
	one := &api.Instance{Ref: "win-1", Enrolment: api.Enrolment{Password: text}}
	for _, name := range []string{
		"openssh", "openssh-encrypted", "pkcs1", "pkcs1-encrypted", "pkcs8",
		"pkcs8-openssl-encrypted", "pkcs8-openssh-encrypted", "pkcs8-aes128-sha1-encrypted",
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(keyDir, name)
			asked := 0
			private, err := readKey(file, func() (imprint.Secret, error) {
				asked++
				return imprint.NewSecret([]byte(keyPassphrase)), nil
			})
			if err != nil {
				t.Fatal(err)
			}
			got, err := decryptPassword(one, file, private)
			if err != nil || string(got.Reveal()) != "Pässwörd 1!" {
				t.Errorf("it says %q, %v", got.Reveal(), err)
			}
			want := 0
			if strings.Contains(name, "encrypted") {
				want = 1
			}
			if asked != want {
				t.Errorf("the passphrase was asked for %d times; want %d", asked, want)
			}
			for _, wrong := range []string{"", "correct horsf"} {
				_, err := readKey(file, func() (imprint.Secret, error) { return imprint.NewSecret([]byte(wrong)), nil })
				if want == 1 && (imprint.KindOf(err) != imprint.Denied || !strings.Contains(err.Error(), "the passphrase is wrong")) {
					t.Errorf("with the passphrase %q: %v", wrong, err)
				}
			}
		})
	}
}

func TestFilesThatAreNoKey(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write := func(name, content string) string {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	for file, want := range map[string]struct {
		kind       imprint.Kind
		says, hint string
	}{
		filepath.Join(keyDir, "ed25519"):                     {imprint.Invalid, "it is not an RSA key", "ssh-rsa"},
		filepath.Join(keyDir, "openssh.pub"):                 {imprint.Invalid, "it is a public key", "keys/openssh"},
		filepath.Join(keyDir, "pkcs8-scrypt-encrypted"):      {imprint.Invalid, "encrypted in a way that is not known here", "openssl pkcs8"},
		write("key.ppk", "PuTTY-User-Key-File-3: ssh-rsa\n"): {imprint.Invalid, "it is a key of PuTTY's", "puttygen"},
		write("empty", ""):                                   {imprint.Invalid, "there is no private key in it", "OpenSSH or a PEM"},
		write("large", strings.Repeat("x", maxKeyFile+1)):    {imprint.Exhausted, "more than 65536 bytes", ""},
		write("damaged", "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMAAw\n-----END ENCRYPTED PRIVATE KEY-----\n"): {imprint.Invalid, "the key is damaged", ""},
		filepath.Join(dir, "missing"): {imprint.NotFound, "no such file or directory", ""},
	} {
		_, err := readKey(file, func() (imprint.Secret, error) { return imprint.NewSecret([]byte("x")), nil })
		if err == nil || imprint.KindOf(err) != want.kind || !strings.Contains(err.Error(), want.says) || !strings.Contains(imprint.HintOf(err), want.hint) {
			t.Errorf("%s: %v (%v; hint %q)", filepath.Base(file), err, imprint.KindOf(err), imprint.HintOf(err))
		}
	}
}

// What a machine posts is not trusted, and what does not fit is said.
func TestPasswordsThatDoNotOpen(t *testing.T) {
	t.Parallel()
	private, err := readKey(filepath.Join(keyDir, "openssh"), nil)
	if err != nil {
		t.Fatal(err)
	}
	line, err := os.ReadFile(filepath.Join(keyDir, "openssh.pub"))
	if err != nil {
		t.Fatal(err)
	}
	other, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := posted(&other.PublicKey, "password")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		text       string
		keys       []string
		says, hint string
	}{
		{string(foreign), nil, "mine does not open it; it belongs to none of the instance's SSH keys", "--key"},
		{string(foreign), []string{"ssh-rsa no-key", string(line)}, "mine does not open it", "encrypted it to another key"},
		{"QUJD", []string{string(line)}, "mine does not open it", "encrypted it to another key"},
		{"not base64!", nil, "what it posted is not base64", "imprint get win-1 -o json"},
	} {
		one := &api.Instance{Ref: "win-1", Spec: imprint.Spec{SSHKeys: c.keys}, Enrolment: api.Enrolment{Password: []byte(c.text)}}
		got, err := decryptPassword(one, "mine", private)
		if imprint.KindOf(err) != imprint.Invalid || err == nil || !strings.HasSuffix(err.Error(), c.says) || !strings.Contains(imprint.HintOf(err), c.hint) {
			t.Errorf("%.20s: %q, %v (hint %q)", c.text, got.Reveal(), err, imprint.HintOf(err))
		}
	}
}

// A terminal obeys no password, and whatever reads a file gets its very bytes.
func TestPasswordIsPrintedAsItIs(t *testing.T) {
	t.Parallel()
	const hostile = "a\tb\x1b[2J\"<&>"
	one := &api.Instance{Ref: "win-1", Generation: 2}
	var out bytes.Buffer
	p := &program{out: &out, output: asTable}
	if err := p.printPassword(one, imprint.NewSecret([]byte(hostile))); err != nil || out.String() != hostile+"\n" {
		t.Errorf("printed %q, %v", out.String(), err)
	}
	out.Reset()
	p.output = asJSON
	var got guestPassword
	if err := errors.Join(p.printPassword(one, imprint.NewSecret([]byte(hostile))), json.Unmarshal(out.Bytes(), &got)); err != nil ||
		got != (guestPassword{"win-1", 2, hostile}) {
		t.Errorf("printed %s, %v", out.String(), err)
	}
	out.Reset()
	if err := p.printPassword(one, imprint.NewSecret([]byte("\xff"))); imprint.KindOf(err) != imprint.Invalid || err == nil || out.Len() > 0 {
		t.Errorf("printed %q, %v", out.String(), err)
	}
}

// A passphrase that is typed is not shown, and nothing is written to standard output.
func TestPassphraseIsAskedForOnATerminal(t *testing.T) {
	t.Parallel()
	master, slave, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer master.Close()
	defer slave.Close()
	asked, prompt := io.Pipe()
	var out bytes.Buffer
	p := &program{in: slave, out: &out, err: prompt}
	file := filepath.Join(keyDir, "openssh-encrypted")
	type outcome struct {
		key *rsa.PrivateKey
		err error
	}
	done := make(chan outcome, 1)
	go func() {
		defer prompt.Close()
		key, err := readKey(file, func() (imprint.Secret, error) { return p.passphrase(file, "") })
		done <- outcome{key, err}
	}()
	want := "Passphrase of " + file + " (not shown): "
	text := make([]byte, len(want))
	if _, err := io.ReadFull(asked, text); err != nil || string(text) != want {
		t.Fatalf("it asked %q, %v", text, err)
	}
	go io.Copy(io.Discard, asked)
	for !echoIsOff(t, slave) { // which comes after the question
		runtime.Gosched()
	}
	if _, err := io.WriteString(master, keyPassphrase+"\n"); err != nil {
		t.Fatal(err)
	}
	if got := <-done; got.err != nil || got.key == nil {
		t.Errorf("the key: %v", got.err)
	}
	if out.Len() > 0 {
		t.Errorf("on standard output: %q", &out)
	}
	io.WriteString(slave, "end")
	shown := make([]byte, 64)
	if n, err := master.Read(shown); err != nil || string(shown[:n]) != "end" {
		t.Errorf("the terminal shows %q, %v", shown[:n], err)
	}
}

func echoIsOff(t *testing.T, terminal *os.File) bool {
	state, err := unix.IoctlGetTermios(int(terminal.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	return state.Lflag&unix.ECHO == 0
}

func FuzzKeyFile(f *testing.F) {
	files, err := filepath.Glob(filepath.Join(keyDir, "*"))
	if err != nil {
		f.Fatal(err)
	}
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		if block, _ := pem.Decode(b); block != nil && block.Type == "ENCRYPTED PRIVATE KEY" {
			f.Add(block.Bytes)
		}
	}
	f.Fuzz(func(t *testing.T, der []byte) {
		key, err := parseKey(&pem.Block{Type: "ENCRYPTED PRIVATE KEY", Bytes: der}, imprint.NewSecret([]byte(keyPassphrase)))
		if err != nil && key != nil {
			t.Errorf("a key and %v", err)
		}
	})
}
