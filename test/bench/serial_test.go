//go:build bench

package bench

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"imprint"
	"imprint/api"
	"imprint/internal/daemon"
	"imprint/internal/triton"
)

// BenchmarkSerialEnrolment is a whole enrolment over a pty without a machine:
// the real server with its store and log on the disk, from the moment that the
// request goes up the line (claim) to the answer to the confirmation.
func BenchmarkSerialEnrolment(b *testing.B) {
	dir, err := os.MkdirTemp("", "ib") // a socket's path holds 107 bytes
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { os.RemoveAll(dir) }) // after the server has ended
	client := startDaemon(b, dir)
	var took []time.Duration
	for n := 0; b.Loop(); n++ {
		b.StopTimer()
		name := imprint.InstanceName(fmt.Sprintf("serial-%d", n))
		created, err := client.Create(b.Context(), imprint.Spec{
			Name: name, Tenant: imprint.DefaultTenant,
			DNSNames: []string{string(name) + ".lab.internal"}, Channels: []imprint.ChannelKind{imprint.Serial2},
		}, nil, false)
		if err != nil {
			b.Fatal(err)
		}
		socket := filepath.Join(dir, "run", string(created.Instance.ID), "serial.sock")
		guest, hangUp := plug(b, socket)
		b.StartTimer()
		took = append(took, enrolOver(b, guest))
		b.StopTimer()
		guest.Close()
		hangUp()
		b.StartTimer()
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "p50-ms")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "p99-ms")
}

// startDaemon runs a server in dir until the test ends.
func startDaemon(b testing.TB, dir string) *api.Client {
	b.Helper()
	config := daemon.DefaultConfig()
	config.Name, config.Data, config.Run, config.Operator = "bench", filepath.Join(dir, "data"), filepath.Join(dir, "run"), ""
	settings, err := config.Check()
	if err != nil {
		b.Fatal(err)
	}
	serving := make(chan struct{})
	d, err := daemon.Open(b.Context(), settings, daemon.Options{Serving: func() { close(serving) }})
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- d.Run(ctx) }()
	b.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			b.Error(err)
		}
	})
	<-serving
	client := api.NewUnix(settings.Socket)
	b.Cleanup(client.Close)
	return client
}

// plug connects a raw pseudo-terminal to the instance's socket, as QEMU would
// its serial port, and returns the guest's end.
func plug(b *testing.B, socket string) (guest *triton.Client, hangUp func()) {
	b.Helper()
	m, s, err := pty.Open()
	if err != nil {
		b.Fatal(err)
	}
	if _, err := term.MakeRaw(int(s.Fd())); err != nil {
		b.Fatal(err)
	}
	hostEnd, guestEnd := pollable(b, m), pollable(b, s)
	var line net.Conn
	for range 500 { // the host binds the socket a moment after the reservation
		if line, err = net.Dial("unix", socket); err == nil {
			break
		}
		time.Sleep(time.Millisecond)
	}
	if err != nil {
		b.Fatal(err)
	}
	go io.Copy(line, hostEnd)
	go io.Copy(hostEnd, line)
	guest = triton.NewClient(triton.Once(guestEnd), triton.ClientOptions{})
	if _, err := guest.Get(b.Context(), "imprint:payload"); err != nil { // delivered; the line is up
		b.Fatal(err)
	}
	return guest, func() { line.Close(); hostEnd.Close() }
}

// pollable returns f in a form whose Close ends a Read, which the ioctls of
// package pty take away from it.
func pollable(b *testing.B, f *os.File) *os.File {
	b.Helper()
	defer f.Close()
	fd, err := unix.Dup(int(f.Fd()))
	if err != nil {
		b.Fatal(err)
	}
	unix.CloseOnExec(fd)
	if err := unix.SetNonblock(fd, true); err != nil {
		b.Fatal(err)
	}
	return os.NewFile(uintptr(fd), f.Name())
}

// enrolOver does what the agent does between claim and confirmation.
func enrolOver(b *testing.B, guest *triton.Client) time.Duration {
	b.Helper()
	get := func(key string) []byte {
		v, err := guest.Get(b.Context(), key)
		if err != nil {
			b.Fatal(err)
		}
		return v
	}
	put := func(key string, value []byte) {
		if err := guest.Put(b.Context(), key, value); err != nil {
			b.Fatal(err)
		}
	}
	payload, err := imprint.DecodePayload(get("imprint:payload"))
	if err != nil {
		b.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: payload.DNSNames}, key)
	if err != nil {
		b.Fatal(err)
	}
	begun := time.Now()
	put("imprint:request", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr}))
	leaf, _ := pem.Decode(get("imprint:certificate"))
	digest := sha256.Sum256(imprint.ConfirmationMessage(payload.Instance, payload.Generation, leaf.Bytes))
	signature, err := ecdsa.SignASN1(rand.Reader, key, digest[:])
	if err != nil {
		b.Fatal(err)
	}
	put("imprint:confirmation", []byte(base64.StdEncoding.EncodeToString(signature)))
	return time.Since(begun)
}
