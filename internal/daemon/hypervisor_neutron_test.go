package daemon_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"go.yaml.in/yaml/v3"

	"imprint"
	"imprint/internal/daemon"
)

// withNeutron configures the hypervisor's own endpoint for Neutron's agents.
func (h *hypervisor) withNeutron(t *testing.T, c daemon.NeutronConfig) {
	t.Helper()
	b, err := yaml.Marshal(map[string]any{"neutron": c})
	if err != nil {
		t.Fatal(err)
	}
	h.config = write(t, t.TempDir(), "host.yaml", string(b))
}

// Neutron's agent on another hypervisor asks "imprint host" there, which answers
// for what is placed on it and nothing else, also while the server is away.
func TestHypervisorBehindNeutron(t *testing.T) {
	t.Parallel()
	site := newSite(t)
	site.withHosts(t)
	server := site.start(t, nil)
	h := site.hypervisor(t)
	config, with, without := newNeutron(t)
	h.withNeutron(t, config)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the host's log:\n%s", h.log)
		}
	})
	const id, nobody, project = "b0b6a9de-3f5c-4c52-9d3c-8a9de3cf12a7", "1f0e6c57-55d2-4b9b-8a60-70dd7a4ce3a5", "default"
	spec := imprint.Spec{
		Name: "nova-1", Host: hypervisorName, DNSNames: []string{"nova-1.lab.internal"}, Channels: []imprint.ChannelKind{imprint.Neutron},
		UserData: "#cloud-config\n# of nova-1\n",
	}
	if _, err := server.CreateAs(t.Context(), id, spec, nil, false); err != nil {
		t.Fatal(err)
	}
	spec.Name, spec.Host, spec.DNSNames = "nova-2", "", nil
	created, err := server.Create(t.Context(), spec, nil, false)
	if err != nil {
		t.Fatal(err)
	}
	elsewhere := created.Instance.ID

	join := site.joinFile(t, hypervisorName)
	h.start(t, join)
	with.find(t, id, project)
	ask := func(id imprint.InstanceID, method, path string, status int, text string) {
		t.Helper()
		got, reply, err := with.ask(t, sharedSecret, id, project, method, path, "")
		if err != nil || got != status || !strings.Contains(reply, text) {
			t.Errorf("%s %s of %s: status %d, %q, %v; want %d with %q", method, path, id, got, reply, err, status, text)
		}
	}
	const metaData, userData = "/openstack/latest/meta_data.json", "/openstack/latest/user_data"
	until(t, "the host to have been told the whole list", func() bool { // until then nobody may be unknown: 503
		status, _, err := with.ask(t, sharedSecret, nobody, project, "GET", metaData, "")
		return err == nil && status == 404
	})
	ask(id, "GET", metaData, 200, `"uuid":"`+id+`"`)
	ask(id, "GET", "/2009-04-04/meta-data/hostname", 200, "nova-1.lab.internal")
	ask(id, "GET", userData, 200, "# of nova-1")
	ask(id, "PUT", "/imprint/v1/ready", 403, "")
	ask(elsewhere, "GET", metaData, 404, "") // it is placed on the server
	ask(nobody, "GET", metaData, 404, "")
	if status, reply, err := with.ask(t, "another secret, as long as it is", id, project, "GET", metaData, ""); err != nil || status != 403 {
		t.Errorf("signed with another secret: %d %q, %v", status, reply, err)
	}
	if status, reply, err := with.ask(t, sharedSecret, id, "evil", "GET", metaData, ""); err != nil || status != 404 {
		t.Errorf("as another project: %d %q, %v", status, reply, err)
	}
	if status, reply, err := without.ask(t, sharedSecret, id, project, "GET", metaData, ""); err == nil {
		t.Errorf("without a client certificate: %d %q", status, reply)
	}
	for ref, want := range map[string]string{
		"nova-1": "neutron: imprint answers Neutron's agents\n", "nova-2": "nothing listens for Neutron's agents on this host",
	} {
		if out, err := site.cli("describe", ref); err != nil || !strings.Contains(out, want) {
			t.Errorf("describe %s: %v\n%s", ref, err, out)
		}
	}

	// Without the server, and after a restart of the host as well.
	server.kill(syscall.SIGKILL)
	until(t, "the host to notice", func() bool { return strings.Contains(h.log.String(), "news about instances are late") })
	ask(id, "GET", metaData, 200, "nova-1")
	h.kill()
	h.start(t, "")
	with.find(t, id, project)
	ask(id, "GET", metaData, 200, "nova-1")
	ask(nobody, "GET", metaData, 503, "") // whether there is one is not known now
	ask(id, "POST", "/imprint/v1/phone-home", 200, "")
	until(t, "the report to be on the disk", func() bool { return h.queued(t) > 0 })

	server = site.start(t, nil)
	h.untilConnected(t, server, "nova-1")
	until(t, "the queue to be empty", func() bool { return h.queued(t) == 0 })
	events, err := server.Timeline(t.Context(), "nova-1", 0)
	if err != nil {
		t.Fatal(err)
	}
	timeline := ""
	for _, e := range events {
		timeline += fmt.Sprintln(e.Kind, e.Channel, e.Detail["from"], e.Detail["seen"] != "")
	}
	if !strings.Contains(timeline, "home neutron any process, or whoever forges its address true") {
		t.Errorf("the timeline:\n%s", timeline)
	}
	until(t, "the boot to be over", func() bool {
		status, _, err := with.ask(t, sharedSecret, id, project, "GET", userData, "")
		return err == nil && status == 404
	})
	ask(id, "GET", metaData, 200, "nova-1")

	if err := server.Delete(t.Context(), "nova-1"); err != nil {
		t.Fatal(err)
	}
	until(t, "the deleted one to be served no more", func() bool {
		status, _, err := with.ask(t, sharedSecret, id, project, "GET", metaData, "")
		return err == nil && status == 404
	})
	h.process.kill(syscall.SIGTERM)
	if status, _, err := with.ask(t, sharedSecret, id, project, "GET", metaData, ""); err == nil {
		t.Errorf("after the end: %d", status)
	}
	if strings.Contains(h.log.String(), sharedSecret) {
		t.Error("the log has the secret")
	}
}

// A host that could not be asked as it is configured does not join, and its token
// is not spent.
func TestHypervisorBehindNeutronThatCannotBe(t *testing.T) {
	t.Parallel()
	site := newSite(t)
	site.withHosts(t)
	server := site.start(t, nil)
	h := site.hypervisor(t)
	config, _, _ := newNeutron(t)
	h.withNeutron(t, config)
	chmod(t, config.SecretFile, 0o640)
	join := site.joinFile(t, hypervisorName)
	if err := h.command(join).Run(); err == nil || !strings.Contains(h.log.String(), "mode 0640 lets others read the key") {
		t.Errorf("%v\n%s", err, h.log)
	}
	if _, err := os.Stat(filepath.Join(h.data, "identity")); !os.IsNotExist(err) {
		t.Errorf("it has an identity: %v", err)
	}
	if i, err := server.Get(t.Context(), "hosts/hv2-lab-internal"); err != nil || i.Enrolment.Claim != nil {
		t.Errorf("%+v, %v", i.Enrolment, err)
	}
}
