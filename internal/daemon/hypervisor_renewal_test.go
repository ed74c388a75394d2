package daemon_test

import (
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"imprint"
	"imprint/api"
	"imprint/internal/daemon"
	"imprint/internal/hostapi"
)

// gate passes connections on, but for those that begin while it is shut: they wait
// until it is opened for good.
type gate struct {
	listener net.Listener
	open     chan struct{}
}

func newGate(t *testing.T, to string, shut func() bool) *gate {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := &gate{l, make(chan struct{})}
	ended := make(chan struct{})
	var passing sync.WaitGroup
	passing.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			passing.Go(func() {
				defer conn.Close()
				if shut() {
					select {
					case <-g.open:
					case <-ended:
						return
					}
				}
				out, err := net.Dial("tcp", to)
				if err != nil {
					return
				}
				defer out.Close()
				var both sync.WaitGroup
				both.Go(func() { io.Copy(out, conn); out.(*net.TCPConn).CloseWrite() })
				both.Go(func() { io.Copy(conn, out); conn.(*net.TCPConn).CloseWrite() })
				both.Wait()
			})
		}
	})
	t.Cleanup(func() { close(ended); l.Close(); passing.Wait() })
	return g
}

// A hypervisor renews its certificate while it serves, and goes on with the new
// one when the old one has ended. The certificate lives for ten minutes, the
// shortest that may be asked for; the server, whose clock was behind when it signed
// the first one, left it half a minute of them.
func TestHypervisorRenewal(t *testing.T) {
	t.Parallel()
	const life, left = 10 * time.Minute, 30 * time.Second
	site := newSite(t)
	site.withHosts(t)
	var behind atomic.Int64
	behind.Store(int64(life - left))
	o := site.options()
	o.Now = func() time.Time { return time.Now().Add(-time.Duration(behind.Load())) }
	ready := make(chan struct{})
	o.Serving = func() { close(ready) }
	d, err := daemon.Open(t.Context(), site.settings(t), o)
	if err != nil {
		t.Fatal(err)
	}
	server := site.run(t, d, ready)

	reservation := hostapi.SpecOf(hypervisorName)
	reservation.Policy.Lifetime = imprint.Duration(life)
	ref := "hosts/" + string(reservation.Name)
	server.create(t, reservation, nil)
	join := filepath.Join(t.TempDir(), "join.json")
	if out, err := site.cli("host", "token", hypervisorName, "--out", join); err != nil {
		t.Fatal(out)
	}
	spec := serialOnly("web-1")
	spec.Host, spec.Params = hypervisorName, []imprint.Param{{Name: "db-password", Visibility: imprint.Private}}
	id := server.create(t, spec, map[string]imprint.Secret{"db-password": imprint.NewSecret([]byte("the first value"))}).ID

	h := site.hypervisor(t)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the host's log:\n%s", h.log)
		}
	})
	joined := func() bool {
		i, err := server.Get(t.Context(), ref)
		return err == nil && i.Enrolment.State == imprint.Closed
	}
	g := newGate(t, h.connect, joined) // so that the first renewal meets the clock that is right
	h.connect = g.listener.Addr().String()
	h.start(t, join)
	until(t, "the host to join", joined)
	first := server.get(t, ref).Enrolment.Certificate
	behind.Store(0) // from here on the clock is right, and the certificate nearly over
	close(g.open)

	connected := func() bool {
		d, err := server.Describe(t.Context(), "web-1")
		return err == nil && d.Host.State == api.HostConnected
	}
	until(t, "the host's connection", connected)
	m := newMachine(t, h.run, id)
	if err := m.enrol(t.Context()); err != nil {
		t.Fatal(err)
	}
	until(t, "the renewal", func() bool { return server.get(t, ref).Enrolment.Certificate.Serial != first.Serial })
	until(t, "the host to say so", func() bool { return strings.Contains(h.log.String(), "the certificate was renewed") })
	second := server.get(t, ref)
	if c := second.Enrolment.Certificate; second.Generation != 1 || c.NotAfter.Sub(first.NotAfter) < life/2 || second.Enrolment.State != imprint.Closed {
		t.Errorf("the second certificate is %+v, in state %s", c, second.Enrolment.State)
	}

	// The first one ends, and with it the stream that it opened, if it did. What is
	// given, read and reported from then on needs the second.
	until(t, "the end of the first certificate", func() bool { return time.Now().After(first.NotAfter.Add(time.Second)) })
	until(t, "the host's connection", connected)
	value := imprint.NewSecret([]byte("the second value"))
	if err := server.PutParam(t.Context(), "web-1", "db-password", value); err != nil {
		t.Fatal(err)
	}
	if got, err := m.open(t.Context(), "db-password"); err != nil || !got.Equal(value) {
		t.Errorf("%q, %v", got.Reveal(), err)
	}
	events, err := server.Timeline(t.Context(), "web-1", 0)
	if err != nil {
		t.Fatal(err)
	}
	if last := events[len(events)-1]; last.Kind != imprint.EventRead || last.Detail["seen"] == "" || h.queued(t) != 0 {
		t.Errorf("the last event is %+v, and %d reports wait", last, h.queued(t))
	}
	if strings.Contains(h.log.String(), "not renewed any more") || strings.Contains(h.log.String(), "accept host") {
		t.Errorf("the host was refused:\n%s", h.log)
	}
	modes(t, h.data)

	// A restart begins with the second.
	h.kill()
	h.start(t, "")
	until(t, "the host's connection", connected)
	if now := server.get(t, ref).Enrolment.Certificate; now.Serial != second.Enrolment.Certificate.Serial {
		t.Errorf("after a restart the certificate is %s, not %s", now.Serial, second.Enrolment.Certificate.Serial)
	}
}
