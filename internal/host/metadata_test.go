package host_test

import (
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"imprint"
	"imprint/internal/dialect"
	"imprint/internal/host"
)

// ask sends a request as any process of the instance's guest, by way of Neutron,
// and returns the status and the reply.
func ask(t *testing.T, h *host.Host, id imprint.InstanceID, path string) (int, string) {
	t.Helper()
	s, err := h.Proxied(t.Context(), string(id), string(imprint.DefaultTenant))
	if err != nil {
		t.Fatal(err)
	}
	reply := httptest.NewRecorder()
	s.ServeHTTP(reply, httptest.NewRequestWithContext(t.Context(), "GET", path, nil))
	return reply.Code, reply.Body.String()
}

// User data is served from the first read on for as long as the instance says,
// else as its server says, else for an hour.
func TestUserDataIsServedForTheBootWindow(t *testing.T) {
	t.Parallel()
	const minute = imprint.Duration(time.Minute)
	for name, c := range map[string]struct{ instance, server, want imprint.Duration }{
		"neither says":      {want: 60 * minute},
		"the server says":   {server: 7 * minute, want: 7 * minute},
		"the instance says": {instance: 90 * minute, want: 90 * minute},
		"both say":          {instance: 2 * minute, server: 7 * minute, want: 2 * minute},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			id := w.reserve("web-1")
			first := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
			var elapsed atomic.Int64
			h, _ := start(t, w, runDir(t), func(o *host.Config) {
				o.Neutron, o.Now = true, func() time.Time { return first.Add(time.Duration(elapsed.Load())) }
				o.Facts = func(tenant imprint.TenantName) (dialect.Facts, error) {
					facts, err := w.facts(tenant)
					facts.BootWindow = c.server
					return facts, err
				}
			})
			w.change(id, func(i *imprint.Instance) {
				i.Spec.Channels, i.Spec.UserData, i.Spec.Policy.BootWindow = []imprint.ChannelKind{imprint.Neutron}, "#cloud-config\n", c.instance
			})
			w.settle(t)
			elapsed.Store(int64(100 * time.Hour))
			if status, body := ask(t, h, id, "/latest/user-data"); status != 200 || body != "#cloud-config\n" {
				t.Fatalf("before anything was read: %d %q", status, body)
			}
			elapsed.Store(0)
			w.change(id, func(i *imprint.Instance) { i.Enrolment.ServedAt = first })
			w.settle(t)
			for after, want := range map[time.Duration]int{time.Duration(c.want) - time.Second: 200, time.Duration(c.want): 404} {
				elapsed.Store(int64(after))
				if status, body := ask(t, h, id, "/latest/user-data"); status != want || strings.Contains(body, "cloud-config") != (want == 200) {
					t.Errorf("%s after the first read: %d %q, want %d", after, status, body, want)
				}
			}
		})
	}
}
