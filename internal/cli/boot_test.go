package cli

import (
	"bytes"
	"encoding/json"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"imprint"
	"imprint/api"
)

// control answers as the control API of host-1 does about one instance, each time
// with the next of its descriptions and then always with the last.
func control(t *testing.T, descriptions ...api.Description) (socket string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "imprint.sock")
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/info", func(w http.ResponseWriter, _ *http.Request) {
		json.NewEncoder(w).Encode(api.Info{Host: "host-1", Run: "/run/imprint"})
	})
	mux.HandleFunc("GET /v1/instances/{ref}/description", func(w http.ResponseWriter, _ *http.Request) {
		d := descriptions[0]
		if len(descriptions) > 1 {
			descriptions = descriptions[1:]
		}
		json.NewEncoder(w).Encode(d)
	})
	srv := http.Server{Handler: mux}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		srv.Serve(ln)
	}()
	t.Cleanup(func() {
		srv.Close()
		<-ended
	})
	return socket
}

// onNIC is an instance with the channel nic, as its host may have it.
func onNIC(nic *imprint.NIC, ports ...api.Port) api.Description {
	return api.Description{
		Instance: api.Instance{
			ID: "7c9f1c52-3b57-4a31-9d2e-0c6a5d0f7e11", Ref: "web-1", NIC: nic,
			Spec:      imprint.Spec{Name: "web-1", Channels: []imprint.ChannelKind{imprint.LinkLocal, imprint.Serial2}},
			Enrolment: api.Enrolment{State: imprint.Reserved},
		},
		Ports: ports,
	}
}

func TestBootAttachesTheInterface(t *testing.T) {
	t.Setenv("IMPRINT_ACCEL", "tcg")
	nic := &imprint.NIC{Host: "host-1", MAC: "02:12:34:56:78:9a", IPv4: netip.MustParseAddr("169.254.7.9")}
	ready := api.Port{Channel: imprint.LinkLocal, Interface: "imp0123"}
	none := api.Port{Channel: imprint.LinkLocal, Problem: "this host has no link-local network"}
	for name, c := range map[string]struct {
		descriptions []api.Description
		flags        string
		want, absent string // in what is printed
		fails        string
	}{
		"at once": {
			descriptions: []api.Description{onNIC(nic, ready)},
			want:         "tap,id=net0,ifname=imp0123,script=no,downscript=no \\\n  -device virtio-net-pci,netdev=net0,romfile=,mac=02:12:34:56:78:9a",
		},
		"after a moment": {
			descriptions: []api.Description{
				onNIC(nil), onNIC(nil), onNIC(nic),
				onNIC(nic, api.Port{Channel: imprint.LinkLocal, Interface: "imp0123", Problem: "it is not up yet"}), onNIC(nic, ready),
			},
			want: "ifname=imp0123",
		},
		"together with others": {descriptions: []api.Description{onNIC(nic, ready)}, want: "/serial.sock"},
		"alone":                {descriptions: []api.Description{onNIC(nic, ready)}, flags: "--channel nic", want: "ifname=imp0123", absent: "/serial.sock"},
		"left out":             {descriptions: []api.Description{onNIC(nil, none)}, flags: "--channel serial", want: "/serial.sock", absent: "-netdev"},
		"looking like Nova":    {descriptions: []api.Description{onNIC(nic, ready)}, flags: "--stock openstack", want: "product=OpenStack Nova"},
		"no network":           {descriptions: []api.Description{onNIC(nil, none)}, fails: "boot web-1: its channel nic: this host has no link-local network"},
		"unknown platform":     {descriptions: []api.Description{onNIC(nic, ready)}, flags: "--stock azure", fails: `"azure" is none of openstack, ec2, nocloud, smartos`},
		"two platforms":        {descriptions: []api.Description{onNIC(nic, ready)}, flags: "--stock ec2 --product x", fails: "none of the others can be"},
	} {
		t.Run(name, func(t *testing.T) {
			var out, complaint bytes.Buffer
			args := append([]string{"--socket", control(t, c.descriptions...), "boot", "web-1", "--kernel", "vmlinuz", "--print"}, strings.Fields(c.flags)...)
			code := Main(args, strings.NewReader(""), &out, &complaint)
			if (code != 0) != (c.fails != "") || !strings.Contains(complaint.String(), c.fails) {
				t.Fatalf("exit code %d: %s", code, &complaint)
			}
			if !strings.Contains(out.String(), c.want) || c.absent != "" && strings.Contains(out.String(), c.absent) {
				t.Errorf("printed\n%s", &out)
			}
		})
	}
}

// The command line with a medium is shown without one being made, and with the
// command that makes it.
func TestBootShowsItsMedium(t *testing.T) {
	t.Setenv("IMPRINT_ACCEL", "tcg")
	none := onNIC(nil)
	none.Instance.Spec.Channels = []imprint.ChannelKind{imprint.NetworkEST}
	for flags, c := range map[string]struct{ want, byHand, fails string }{
		"--carrier iso":               {want: "file=web-1.iso,format=raw,readonly=on,media=cdrom \\\n  -device virtio-scsi-pci \\\n  -device scsi-cd,drive=medium-image", byHand: "imprint media web-1 --dialect native --carrier iso --out web-1.iso\n"},
		"--carrier iso --as-disk":     {want: "-device scsi-hd,removable=on,drive=medium-image", byHand: "--carrier iso"},
		"--carrier fat":               {want: "file=web-1.fat,", byHand: "--carrier fat --out web-1.fat"},
		"--carrier floppy":            {want: "-device floppy,", byHand: "--carrier floppy"},
		"--carrier smbios":            {want: "-smbios file=web-1.smbios", byHand: "--dialect native --carrier smbios"},
		"--carrier initrd":            {want: "-initrd web-1.initrd", byHand: "--carrier initrd --out web-1.initrd\n"},
		"--carrier initrd --initrd i": {want: "-initrd web-1.initrd", byHand: "--out web-1.initrd --append-to i\n"},
		"--carrier iso --dialect openstack --stock openstack": {want: "product=OpenStack Nova", byHand: "--dialect openstack --carrier iso"},

		"--carrier tape":                      {fails: "find carrier tape: there are iso, "},
		"--carrier iso --dialect credentials": {fails: "put credentials on iso: nothing would look for it there"},
		"--carrier fat --as-disk":             {fails: "boot web-1: the carrier fat is not a CD image, which --as-disk is for"},
		"--dialect native":                    {fails: "boot web-1: it gets no medium"},
		"--carrier floppy --machine microvm":  {fails: "a microvm has no floppy drive"},
		"--carrier smbios --machine microvm":  {fails: "a microvm has no SMBIOS"},
	} {
		t.Run(flags, func(t *testing.T) {
			var out, complaint bytes.Buffer
			args := append([]string{"--socket", control(t, none), "boot", "web-1", "--kernel", "vmlinuz", "--print"}, strings.Fields(flags)...)
			code := Main(args, strings.NewReader(""), &out, &complaint)
			if (code != 0) != (c.fails != "") || !strings.Contains(complaint.String(), c.fails) {
				t.Fatalf("exit code %d: %s", code, &complaint)
			}
			if c.fails != "" {
				return
			}
			if !strings.Contains(out.String(), c.want) || !strings.Contains(out.String(), "user,id=net0,restrict=off") || strings.Contains(out.String(), "control") {
				t.Errorf("printed\n%s", &out)
			}
			if !strings.Contains(complaint.String(), "write the medium first: ") || !strings.Contains(complaint.String(), c.byHand) {
				t.Errorf("said %q, not %q", &complaint, c.byHand)
			}
		})
	}
}

// A machine that will not reach the check-in endpoint is told of in one sentence,
// with what cures it. What reaches it by one of its URLs is not.
func TestWarnUnreachable(t *testing.T) {
	t.Parallel()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	other, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, closed, _ := net.SplitHostPort(other.Addr().String())
	other.Close()
	for name, c := range map[string]struct {
		urls []string
		want []string
	}{
		"none":    {},
		"gateway": {urls: []string{"https://10.0.2.2:" + port}},
		"second":  {urls: []string{"https://imprint.invalid:" + port, "https://10.0.2.2:" + port}},
		"itself": {urls: []string{"https://localhost:" + port, "https://127.0.0.1:" + port}, want: []string{
			"warning: web-1 will not be able to check in: https://localhost:" + port + " leads a machine to itself; https://127.0.0.1:" + port + " leads a machine to itself\n",
			"hint: add https://10.0.2.2:" + port + " to checkIn.urls"}},
		"name":   {urls: []string{"https://imprint.invalid:" + port}, want: []string{"https://imprint.invalid:" + port + " has a name that no name server knows\n"}},
		"silent": {urls: []string{"https://10.0.2.2:" + closed}, want: []string{" does not answer\n", "with checkIn.listen\n"}},
		"both":   {urls: []string{"https://localhost:" + closed}, want: []string{"with checkIn.listen, and add https://10.0.2.2:" + closed + " to checkIn.urls"}},
	} {
		var complaint bytes.Buffer
		(&program{err: &complaint}).warnUnreachable(t.Context(), "web-1", c.urls)
		for _, want := range c.want {
			if !strings.Contains(complaint.String(), want) {
				t.Errorf("%s: it does not say %q:\n%s", name, want, &complaint)
			}
		}
		if c.want == nil && complaint.Len() > 0 {
			t.Errorf("%s: it says %s", name, &complaint)
		}
	}
}

func TestDescribeShowsTheInterface(t *testing.T) {
	nic := &imprint.NIC{Host: "host-1", MAC: "02:12:34:56:78:9a", IPv4: netip.MustParseAddr("169.254.7.9")}
	port := api.Port{Channel: imprint.LinkLocal, Interface: "imp0123"}
	down := port
	down.Problem = "it is down"
	at := time.Date(2026, 11, 25, 12, 0, 0, 0, time.Local)
	home := onNIC(nic, port)
	home.Instance.Enrolment.HomeAt = at
	confirmed := onNIC(nic, port)
	confirmed.Instance.Enrolment.State, confirmed.Instance.Enrolment.ConfirmedAt = imprint.Closed, at
	revoked := onNIC(nic, port)
	revoked.Instance.Enrolment.State = imprint.Revoked
	serial := onNIC(nil)
	serial.Instance.Spec.Channels = []imprint.ChannelKind{imprint.Serial2}
	for _, c := range []struct {
		d    api.Description
		want []string
	}{
		{onNIC(nic, port), []string{"Port: nic: interface imp0123, MAC 02:12:34:56:78:9a, address 169.254.7.9", "User data: served until"}},
		{onNIC(nic, down), []string{"Port: nic: interface imp0123, MAC 02:12:34:56:78:9a, address 169.254.7.9: it is down"}},
		{onNIC(nil, api.Port{Channel: imprint.LinkLocal, Problem: "no network"}), []string{"Port: nic: no network"}},
		{home, []string{"User data: withheld since the machine said that it has booted, 2026-11-25 12:00:00"}},
		{confirmed, []string{"User data: withheld since a key is enrolled, 2026-11-25 12:00:00"}},
		{revoked, []string{"User data: withheld, because nobody may enrol"}},
		{serial, nil},
	} {
		var out bytes.Buffer
		(&program{out: &out}).describe(&out, &c.d)
		text := strings.ReplaceAll(out.String(), "\t", ": ")
		for _, want := range c.want {
			if !strings.Contains(text, want) {
				t.Errorf("it does not say %q:\n%s", want, text)
			}
		}
		if c.want == nil && strings.Contains(text, "User data") {
			t.Errorf("it speaks of user data:\n%s", text)
		}
	}
}
