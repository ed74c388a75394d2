//go:build interop

package interop

import (
	"bytes"
	"context"
	"encoding/base64"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"imprint"
	"imprint/api"
	"imprint/internal/cli"
	"imprint/internal/daemon"
	"imprint/internal/dialect"
	"imprint/internal/triton"
	"imprint/test/need"
)

// TestPasswordOpenSSL: OpenSSL encrypts a password as a guest does, with keys of
// many sizes that OpenSSL and OpenSSH made and encrypted; "imprint password"
// prints it, and so does what nova get-password runs, from the same text.
func TestPasswordOpenSSL(t *testing.T) {
	openssl, keygen := need.Program(t, "openssl", "openssl"), need.Program(t, "ssh-keygen", "openssh-client")
	s := newPasswordServer(t)
	const passphrase, password = "correct horse", "Made up: ä 1!"
	for _, key := range []struct {
		name string
		make [][]string // commands that make the key "key"
	}{
		{"openssh", [][]string{{keygen, "-q", "-t", "rsa", "-b", "3072", "-N", "", "-f", "key"}}},
		{"openssh-encrypted", [][]string{{keygen, "-q", "-t", "rsa", "-b", "3072", "-N", passphrase, "-f", "key"}}},
		{"openssh-cbc", [][]string{{keygen, "-q", "-t", "rsa", "-b", "1024", "-Z", "aes256-cbc", "-N", passphrase, "-f", "key"}}},
		{"keygen-pem", [][]string{{keygen, "-q", "-t", "rsa", "-b", "2048", "-m", "PEM", "-N", passphrase, "-f", "key"}}},
		{"keygen-pkcs8", [][]string{{keygen, "-q", "-t", "rsa", "-b", "2048", "-m", "PKCS8", "-N", passphrase, "-f", "key"}}},
		{"genrsa", [][]string{{openssl, "genrsa", "-out", "key", "4096"}}},
		{"genrsa-encrypted", [][]string{{openssl, "genrsa", "-aes256", "-passout", "file:passphrase", "-out", "key", "2048"}}},
		{"traditional", [][]string{
			{openssl, "genrsa", "-out", "plain", "2048"},
			{openssl, "rsa", "-in", "plain", "-traditional", "-aes256", "-passout", "file:passphrase", "-out", "key"},
		}},
		{"sha512", [][]string{
			{openssl, "genrsa", "-out", "plain", "2048"},
			{openssl, "pkcs8", "-topk8", "-in", "plain", "-v2", "aes-192-cbc", "-v2prf", "hmacWithSHA512", "-passout", "file:passphrase", "-out", "key"},
		}},
	} {
		t.Run(key.name, func(t *testing.T) {
			s.dir = t.TempDir()
			s.write(t, "passphrase", passphrase+"\n")
			s.write(t, "password", password)
			for _, command := range key.make {
				s.must(t, command[0], command[1:]...)
			}
			// OpenSSL does not read OpenSSH's own format; ssh-keygen rewrites it in place.
			s.must(t, "cp", "key", "pem")
			s.must(t, keygen, "-q", "-p", "-m", "PEM", "-P", passphrase, "-N", "", "-f", "pem")
			s.must(t, openssl, "rsa", "-in", "pem", "-pubout", "-out", "public.pem")
			s.must(t, openssl, "pkeyutl", "-encrypt", "-pubin", "-inkey", "public.pem", "-in", "password", "-out", "posted")
			ciphertext, err := os.ReadFile(filepath.Join(s.dir, "posted"))
			if err != nil {
				t.Fatal(err)
			}
			one := s.post(t, base64.StdEncoding.EncodeToString(ciphertext))

			if got := s.imprint(t, "password", one, "--key", filepath.Join(s.dir, "key"), "--passphrase-file", filepath.Join(s.dir, "passphrase")); got != password+"\n" {
				t.Errorf("imprint password printed %q", got)
			}
			kept, err := base64.StdEncoding.DecodeString(strings.TrimSpace(s.imprint(t, "password", one, "--encrypted")))
			if err != nil || !bytes.Equal(kept, ciphertext) {
				t.Fatalf("the record has %x, %v", kept, err)
			}
			s.write(t, "kept", string(kept))
			for _, tool := range [][]string{
				{"pkeyutl", "-decrypt", "-inkey", "pem", "-in", "kept"},
				{"rsautl", "-decrypt", "-inkey", "pem", "-in", "kept"}, // as python-novaclient does
			} {
				cmd := exec.CommandContext(t.Context(), openssl, tool...)
				cmd.Dir = s.dir
				if out, err := cmd.Output(); err != nil || string(out) != password {
					t.Errorf("openssl %s printed %q, %v", tool[0], out, err)
				}
			}
		})
	}
}

// passwordServer is a server, and a directory for what belongs to one key.
type passwordServer struct {
	run    string
	client *api.Client
	dir    string // set by each test
}

func newPasswordServer(t *testing.T) *passwordServer {
	t.Helper()
	run, err := os.MkdirTemp("", "i") // the names of sockets have to stay short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(run) })
	config := daemon.DefaultConfig()
	config.Data, config.Run, config.Operator = t.TempDir(), run, ""
	settings, err := config.Check()
	if err != nil {
		t.Fatal(err)
	}
	serving := make(chan struct{})
	d, err := daemon.Open(t.Context(), settings, daemon.Options{
		Logger: slog.New(slog.NewTextHandler(t.Output(), nil)), Serving: func() { close(serving) },
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- d.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	select {
	case <-serving:
	case err := <-ended:
		ended <- nil
		t.Fatalf("the server ended: %v", err)
	}
	s := &passwordServer{run: run, client: api.NewUnix(filepath.Join(run, "imprint.sock"))}
	t.Cleanup(s.client.Close)
	return s
}

func (s *passwordServer) write(t *testing.T, name, content string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(s.dir, name), []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// must runs a program in the directory.
func (s *passwordServer) must(t *testing.T, program string, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), program, args...)
	cmd.Dir = s.dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v\n%s", filepath.Base(program), strings.Join(args, " "), err, out)
	}
}

// imprint runs a verb of the command line and returns what it printed.
func (s *passwordServer) imprint(t *testing.T, args ...string) string {
	t.Helper()
	var out, complaint bytes.Buffer
	args = append([]string{"--socket", filepath.Join(s.run, "imprint.sock")}, args...)
	if code := cli.Main(args, strings.NewReader(""), &out, &complaint); code != 0 {
		t.Fatalf("imprint %s: exit code %d: %s", strings.Join(args, " "), code, &complaint)
	}
	return out.String()
}

// post reserves a machine, posts the text up its serial port, and returns its name.
func (s *passwordServer) post(t *testing.T, text string) string {
	t.Helper()
	_, name, _ := strings.Cut(t.Name(), "/")
	created, err := s.client.Create(t.Context(), imprint.Spec{Name: imprint.InstanceName(name), Channels: []imprint.ChannelKind{imprint.Serial2}}, nil, false)
	if err != nil {
		t.Fatal(err)
	}
	client := triton.NewClient(func(context.Context) (io.ReadWriteCloser, error) {
		conn, err := net.Dial("unix", filepath.Join(s.run, string(created.Instance.ID), "serial.sock"))
		if err != nil { // the server binds it a moment after it stored the reservation
			return nil, imprint.Errorf(imprint.Unavailable, "dial", "serial port", "%w", err)
		}
		return conn, nil
	}, triton.ClientOptions{})
	defer client.Close()
	if err := client.Put(t.Context(), dialect.KeyPassword, []byte(text)); err != nil {
		t.Fatal(err)
	}
	return name
}
