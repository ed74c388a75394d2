package signer

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"imprint"
	"imprint/internal/peercred"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// start serves keys on a socket until stop is called or the test ends.
func start(t testing.TB, path string, keys ...crypto.Signer) (stop func()) {
	t.Helper()
	l, err := Listen(path, -1)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() {
		if err := Serve(ctx, l, Config{Keys: keys, GID: -1, Logger: slog.New(slog.DiscardHandler)}); err != nil {
			t.Error(err)
		}
	})
	stop = sync.OnceFunc(func() { cancel(); done.Wait() })
	t.Cleanup(stop)
	return stop
}

func newClient(t testing.TB, path string) *Client {
	c := NewClient(path)
	t.Cleanup(func() { c.Close() })
	return c
}

func socketPath(t testing.TB) string { return filepath.Join(t.TempDir(), "s") }

func TestSign(t *testing.T) {
	t.Parallel()
	path, key := socketPath(t), newKey(t)
	start(t, path, newKey(t), key)
	c := newClient(t, path)
	keys, err := c.Keys(t.Context())
	if err != nil || len(keys) != 2 || !key.PublicKey.Equal(keys[1].Public()) {
		t.Fatalf("%v, %v", keys, err)
	}
	digest := sha256.Sum256([]byte("hello"))
	want, err := key.Sign(nil, digest[:], crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 100 { // more than there may be connections
		wg.Go(func() {
			got, err := keys[1].Sign(rand.Reader, digest[:], crypto.SHA256)
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("%x, %v; the key itself signs %x", got, err, want)
			}
		})
	}
	wg.Wait()
}

// The signer works as the key of crypto/x509, which hands it what it needs.
func TestSignCertificate(t *testing.T) {
	t.Parallel()
	path, key := socketPath(t), newKey(t)
	start(t, path, key)
	remote, err := newClient(t, path).Key(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1, 0)}
	if _, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), remote); err != nil {
		t.Fatal(err)
	}
}

func TestClientReconnects(t *testing.T) {
	t.Parallel()
	path, key := socketPath(t), newKey(t)
	stop := start(t, path, key)
	remote, err := newClient(t, path).Key(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	digest := sha256.Sum256(nil)
	sign := func() error { _, err := remote.Sign(nil, digest[:], crypto.SHA256); return err }
	if err := sign(); err != nil {
		t.Fatal(err)
	}
	stop()
	err = sign()
	if imprint.KindOf(err) != imprint.Unavailable || imprint.HintOf(err) == "" {
		t.Errorf("signer away: %v", err)
	}
	stop = start(t, path, key)
	if err := sign(); err != nil {
		t.Errorf("signer back: %v", err)
	}
	stop()
	start(t, path, key)
	if err := sign(); err != nil {
		t.Errorf("signer restarted between two requests: %v", err)
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	path, key := socketPath(t), newKey(t)
	start(t, path, key)
	c := newClient(t, path)
	other, err := c.Key(&newKey(t).PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	mine, err := c.Key(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	digest := make([]byte, 32)
	for name, test := range map[string]struct {
		key    *Key
		digest []byte
		hash   crypto.Hash
		kind   imprint.Kind
	}{
		"unknown key":       {other, digest, crypto.SHA256, imprint.NotFound},
		"short digest":      {mine, digest[:31], crypto.SHA256, imprint.Invalid},
		"wrong hash":        {mine, digest, crypto.SHA512, imprint.Invalid},
		"weak hash":         {mine, digest[:20], crypto.SHA1, imprint.Invalid},
		"message, not hash": {mine, digest, crypto.Hash(0), imprint.Invalid},
	} {
		if _, err := test.key.Sign(nil, test.digest, test.hash); imprint.KindOf(err) != test.kind {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := mine.Sign(nil, digest, crypto.SHA256); err != nil {
		t.Errorf("after refusals: %v", err)
	}
}

// What is no request is answered and ends the connection; others go on.
func TestServerSurvivesGarbage(t *testing.T) {
	t.Parallel()
	path, key := socketPath(t), newKey(t)
	start(t, path, key)
	for _, garbage := range []string{"", "\x00", "\x00\x00", "\x00\x02\x01\x09", "\xff\xff", "GET / HTTP/1.1\r\n\r\n", "\x00\x03\x01\x01x", "\x00\x30\x01\x02short"} {
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		conn.Write([]byte(garbage))
		conn.(*net.UnixConn).CloseWrite()
		var answer bytes.Buffer
		answer.ReadFrom(conn) // ends: the server closes
		conn.Close()
		if answer.Len() > 0 && status(answer.Bytes()[3]) != statusBadRequest {
			t.Errorf("%q: answer %q", garbage, answer.Bytes())
		}
	}
	if _, err := newClient(t, path).Keys(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestListen(t *testing.T) {
	t.Parallel()
	t.Run("mode", func(t *testing.T) {
		path := socketPath(t)
		start(t, path, newKey(t))
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%v, %v", info.Mode(), err)
		}
	})
	t.Run("group", func(t *testing.T) {
		path := socketPath(t)
		l, err := Listen(path, os.Getgid())
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm() != 0o660 || int(info.Sys().(*syscall.Stat_t).Gid) != os.Getgid() {
			t.Errorf("%v, %v", info.Mode(), err)
		}
	})
	t.Run("served", func(t *testing.T) {
		path := socketPath(t)
		start(t, path, newKey(t))
		if _, err := Listen(path, -1); imprint.KindOf(err) != imprint.Conflict || imprint.HintOf(err) == "" {
			t.Errorf("%v", err)
		}
		if _, err := newClient(t, path).Keys(t.Context()); err != nil {
			t.Errorf("the first signer was disturbed: %v", err)
		}
	})
	t.Run("stale", func(t *testing.T) {
		path := socketPath(t)
		leaveStale(t, path)
		start(t, path, newKey(t))
		if _, err := newClient(t, path).Keys(t.Context()); err != nil {
			t.Error(err)
		}
	})
	t.Run("a file", func(t *testing.T) {
		path := socketPath(t)
		if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Listen(path, -1); imprint.KindOf(err) != imprint.Invalid || imprint.HintOf(err) == "" {
			t.Errorf("%v", err)
		}
		if b, _ := os.ReadFile(path); string(b) != "precious" {
			t.Error("the file is gone")
		}
	})
	t.Run("long path", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), string(bytes.Repeat([]byte("x"), 120)))
		if _, err := Listen(path, -1); imprint.KindOf(err) != imprint.Invalid {
			t.Errorf("%v", err)
		}
	})
	t.Run("race", func(t *testing.T) {
		for range 20 {
			path := socketPath(t)
			leaveStale(t, path)
			won := make(chan *net.UnixListener, 8)
			var wg sync.WaitGroup
			for range cap(won) {
				wg.Go(func() {
					if l, err := Listen(path, -1); err == nil {
						won <- l
					}
				})
			}
			wg.Wait()
			close(won)
			if len(won) != 1 {
				t.Errorf("%d signers listen", len(won))
			}
			for l := range won {
				l.Close()
			}
		}
	})
}

// leaveStale leaves a socket as a process does that was killed.
func leaveStale(t *testing.T, path string) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
}

func TestAdmitted(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		peer  peercred.Peer
		group int
		want  bool
	}{
		{peercred.Peer{UID: 1000, GID: 1000}, -1, true}, // the signer's own user
		{peercred.Peer{UID: 0, GID: 0}, -1, true},       // root
		{peercred.Peer{UID: 1001, GID: 50}, 50, true},   // the configured group
		{peercred.Peer{UID: 1001, GID: 1001, Groups: []int{27, 50}}, 50, true},
		{peercred.Peer{UID: 1001, GID: 51, Groups: []int{51, 0}}, 50, false},
		{peercred.Peer{UID: 1001, GID: 1000}, -1, false},
	} {
		if got := admitted(test.peer, 1000, test.group); got != test.want {
			t.Errorf("%+v: %v", test, got)
		}
	}
}

func TestServeRefusesKeys(t *testing.T) {
	t.Parallel()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	for _, keys := range [][]crypto.Signer{nil, {key}} {
		l, err := Listen(socketPath(t), -1)
		if err != nil {
			t.Fatal(err)
		}
		if err := Serve(t.Context(), l, Config{Keys: keys, GID: -1, Logger: slog.New(slog.DiscardHandler)}); imprint.KindOf(err) != imprint.Invalid {
			t.Errorf("%d keys: %v", len(keys), err)
		}
	}
}

// A signer that hangs costs a bounded time.
func TestCallEndsWithContext(t *testing.T) {
	t.Parallel()
	path := socketPath(t)
	l, err := Listen(path, -1) // and nobody accepts
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(20*time.Millisecond, cancel)
	if _, err := newClient(t, path).Keys(ctx); !errors.Is(err, context.Canceled) || imprint.KindOf(err) != imprint.Unavailable {
		t.Errorf("%v", err)
	}
}

func FuzzRequest(f *testing.F) {
	digest := sha256.Sum256(nil)
	for _, r := range []request{{Op: opList}, {Op: opSign, Key: imprint.KeyIDOf(nil), Hash: crypto.SHA256, Digest: digest[:]}} {
		frame, err := r.append(nil)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(frame[2:])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := parseRequest(b)
		if err != nil {
			return
		}
		frame, err := r.append(nil)
		if err != nil || !bytes.Equal(frame[2:], b) {
			t.Errorf("%x reads as %+v, which is written as %x (%v)", b, r, frame, err)
		}
	})
}

func FuzzReply(f *testing.F) {
	f.Add(reply{statusOK, appendKey(nil, []byte("key"))}.append(nil))
	f.Add(reply{statusUnknownKey, []byte("no key")}.append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		frame, err := readFrame(bytes.NewReader(b), maxReply)
		if err != nil {
			return
		}
		r, err := parseReply(frame)
		if err != nil {
			return
		}
		if again := r.append(nil); !bytes.Equal(again, b[:len(again)]) {
			t.Errorf("%x is written as %x", b, again)
		}
		keys, err := parseKeys(r.Body)
		if err != nil {
			return
		}
		var list []byte
		for _, key := range keys {
			list = appendKey(list, key)
		}
		if !bytes.Equal(list, r.Body) {
			t.Errorf("list %x is written as %x", r.Body, list)
		}
	})
}

func BenchmarkSign(b *testing.B) {
	path, key := socketPath(b), newKey(b)
	start(b, path, key)
	remote, err := newClient(b, path).Key(&key.PublicKey)
	if err != nil {
		b.Fatal(err)
	}
	digest := sha256.Sum256(nil)
	for name, signer := range map[string]crypto.Signer{"in process": key, "over the socket": remote} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if _, err := signer.Sign(nil, digest[:], crypto.SHA256); err != nil {
						b.Error(err)
					}
				}
			})
		})
	}
}
