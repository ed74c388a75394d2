package host_test

import (
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"

	"imprint"
	"imprint/internal/host"
)

// behind gives an instance the channel neutron, or takes it away.
func (w *world) behind(t *testing.T, id imprint.InstanceID, kinds ...imprint.ChannelKind) {
	t.Helper()
	inst := w.get(id).Clone()
	inst.Spec.Channels = kinds
	w.set(inst)
	w.settle(t)
}

// Neutron's agent finds an instance for as long as it has the channel, for its
// own project only.
func TestProxied(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id, serial := w.reserve("web-1"), w.reserve("web-2")
	h, _ := start(t, w, runDir(t), func(c *host.Config) { c.Neutron = true })
	project := string(imprint.DefaultTenant)
	want := func(when string, id imprint.InstanceID, project string, found bool) {
		t.Helper()
		s, err := h.Proxied(t.Context(), string(id), project)
		if (err == nil) != found || found != (s != nil) || !found && imprint.KindOf(err) != imprint.NotFound {
			t.Errorf("%s: %v, %v", when, s, err)
		}
	}
	want("without the channel", id, project, false)
	w.behind(t, id, imprint.Neutron)
	want("with it", id, project, true)
	want("another project", id, "evil", false)
	want("no project", id, "", false)
	want("another instance", serial, project, false)
	want("an unknown one", "nobody", project, false)
	if ports := h.Ports(id); len(ports) != 1 || !reflect.DeepEqual(ports[0], host.Port{Channel: imprint.Neutron}) {
		t.Errorf("ports %+v", ports)
	}

	// A neighbour gets what any process gets, and nobody is root.
	s, err := h.Proxied(t.Context(), string(id), project)
	if err != nil {
		t.Fatal(err)
	}
	for path, status := range map[string]int{
		"/imprint/v1/param/motd": 200, "/imprint/v1/param/token": 403, "/imprint/v1/param/disk-key": 403, "/imprint/v1/pipe": 403,
	} {
		reply := httptest.NewRecorder()
		r := httptest.NewRequestWithContext(t.Context(), "GET", path, nil)
		r.RemoteAddr = "10.0.0.5:700" // the agent's own, which says nothing about the guest
		s.ServeHTTP(reply, r)
		if reply.Code != status || strings.Contains(reply.Body.String(), "private of") {
			t.Errorf("%s: %d %q, want %d", path, reply.Code, reply.Body, status)
		}
	}

	w.behind(t, id, imprint.Serial2)
	want("the channel taken away", id, project, false)
}

// On a host that Neutron does not reach, its port says so.
func TestNeutronThatReachesNobody(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id := w.reserve("web-1")
	h, _ := start(t, w, runDir(t))
	w.behind(t, id, imprint.Neutron)
	if ports := h.Ports(id); len(ports) != 1 || !strings.Contains(ports[0].Problem, "nothing listens for Neutron's agents on this host") {
		t.Errorf("ports %+v", ports)
	}
}

// As long as the host has not heard which instances there are, the guest is told
// to ask again, not that there is nothing.
func TestProxiedBeforeTheListIsHeard(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	h, err := host.New(host.Config{
		Name: "hv1.example", RunDir: runDir(t), Instances: w, Control: w, Params: w, Secrets: host.NewSecrets(), Facts: w.facts, Neutron: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.Proxied(t.Context(), "web", "default"); imprint.KindOf(err) != imprint.Unavailable {
		t.Errorf("%v", err)
	}
}
