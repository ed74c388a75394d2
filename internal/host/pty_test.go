package host_test

import (
	"context"
	"io"
	"os"
	"testing"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"imprint"
	"imprint/internal/host"
	"imprint/internal/triton"
)

// baud115200 is what a UART carries at 115200 baud, 8N1, in bytes a second.
const baud115200 = 11520

// uart paces a stream to a number of bytes a second each way, as a UART does.
type uart struct {
	io.ReadWriteCloser
	rate       int
	sent, read time.Time // when the line is free again
}

// grain is how many bytes pass at once.
const grain = 64

func (u *uart) pace(free *time.Time, n int) {
	now := time.Now()
	if free.Before(now) {
		*free = now
	}
	*free = free.Add(time.Duration(n) * time.Second / time.Duration(u.rate))
	time.Sleep(free.Sub(now))
}

func (u *uart) Read(b []byte) (int, error) {
	n, err := u.ReadWriteCloser.Read(b[:min(len(b), grain)])
	u.pace(&u.read, n)
	return n, err
}

func (u *uart) Write(b []byte) (int, error) {
	for done := 0; done < len(b); {
		n := min(len(b)-done, grain)
		u.pace(&u.sent, n)
		n, err := u.ReadWriteCloser.Write(b[done : done+n])
		if done += n; err != nil {
			return done, err
		}
	}
	return len(b), nil
}

// openPTY returns both ends of a raw pseudo-terminal.
func openPTY(t testing.TB) (hostEnd, guestEnd io.ReadWriteCloser) {
	t.Helper()
	m, s, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := term.MakeRaw(int(s.Fd())); err != nil {
		t.Fatal(err)
	}
	return pollable(t, m), pollable(t, s)
}

// pollable returns f in a form whose Close ends a Read, which the ioctls of
// package pty take away from it.
func pollable(t testing.TB, f *os.File) *os.File {
	t.Helper()
	defer f.Close()
	fd, err := unix.Dup(int(f.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	unix.CloseOnExec(fd)
	if err := unix.SetNonblock(fd, true); err != nil {
		t.Fatal(err)
	}
	return os.NewFile(uintptr(fd), f.Name())
}

// attach serves the instance over a pty of so many bytes a second (0: as fast
// as it goes) and returns the guest's client.
func attach(t testing.TB, h *host.Host, id imprint.InstanceID, rate int) *triton.Client {
	t.Helper()
	hostEnd, guestEnd := openPTY(t)
	if rate > 0 {
		hostEnd = &uart{ReadWriteCloser: hostEnd, rate: rate}
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); h.Serve(ctx, id, imprint.Serial2, hostEnd) }()
	c := triton.NewClient(triton.Once(guestEnd), triton.ClientOptions{})
	t.Cleanup(func() { c.Close(); cancel(); <-done })
	return c
}

func TestEnrolmentOverASlowSerialLine(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id := w.reserve("web-1")
	h, _ := start(t, w, runDir(t), withSecret(t, id))
	m := newMachine(t, attach(t, h, id, baud115200))
	begin := time.Now()
	if _, err := m.enrol(t.Context()); err != nil {
		t.Fatal(err)
	}
	took := time.Since(begin)
	t.Logf("a whole enrolment at 115200 baud took %v", took.Round(time.Millisecond))
	if took > 2*time.Second {
		t.Errorf("it took %v; 2 s are allowed", took)
	}
}

// withSecret gives the instance's secret parameter to the host.
func withSecret(t testing.TB, id imprint.InstanceID) func(*host.Config) {
	return func(c *host.Config) {
		if err := c.Secrets.Put(id, 1, "disk-key", imprint.NewSecret([]byte("secret of web-1"))); err != nil {
			t.Fatal(err)
		}
	}
}

func BenchmarkEnrolment(b *testing.B) {
	for name, rate := range map[string]int{"pty": 0, "pty at 115200 baud": baud115200} {
		b.Run(name, func(b *testing.B) {
			w := newWorld(b)
			secrets := host.NewSecrets()
			h, _ := start(b, w, runDir(b), func(c *host.Config) { c.Secrets = secrets })
			b.ReportAllocs()
			var claims, total time.Duration
			for b.Loop() {
				b.StopTimer()
				id := w.reserve("web-1")
				w.settle(b)
				if err := secrets.Put(id, 1, "disk-key", imprint.NewSecret([]byte("secret of web-1"))); err != nil {
					b.Fatal(err)
				}
				m := newMachine(b, attach(b, h, id, rate))
				if _, err := m.Get(b.Context(), "imprint:state"); err != nil { // the line is flushed and negotiated
					b.Fatal(err)
				}
				b.StartTimer()
				begin := time.Now()
				if err := m.claim(b.Context()); err != nil {
					b.Fatal(err)
				}
				if err := m.confirm(b.Context()); err != nil {
					b.Fatal(err)
				}
				claims += time.Since(begin)
				if _, err := m.sealed(b.Context(), "disk-key"); err != nil {
					b.Fatal(err)
				}
				total += time.Since(begin)
				b.StopTimer()
				w.delete(id)
				m.Close()
				b.StartTimer()
			}
			b.ReportMetric(float64(claims.Microseconds())/1000/float64(b.N), "ms/claim-to-confirmed")
			b.ReportMetric(float64(total.Microseconds())/1000/float64(b.N), "ms/enrolment")
		})
	}
}
