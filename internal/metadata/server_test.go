package metadata_test

import (
	"strconv"
	"strings"
	"testing"
)

// crawl follows every listing, as cloud-init does, and returns the leaves.
func crawl(w *world) []string {
	var leaves []string
	var walk func(dir string)
	walk = func(dir string) {
		_, listing := w.get(dir)
		for entry := range strings.SplitSeq(listing, "\n") {
			key, _, isKey := strings.Cut(entry, "=")
			switch {
			case entry == "password":
			case isKey:
				walk(dir + key + "/")
			case strings.HasSuffix(entry, "/"):
				walk(dir + entry)
			default:
				leaves = append(leaves, dir+entry)
			}
		}
	}
	_, versions := w.get("/")
	for version := range strings.SplitSeq(versions, "\n") {
		walk("/" + version + "/")
	}
	_, versions = w.get("/openstack")
	for version := range strings.SplitSeq(versions, "\n") {
		walk("/openstack/" + version + "/")
	}
	return leaves
}

func TestListingsAreNovas(t *testing.T) {
	t.Parallel()
	w := newWorld(t, instance(), nil)
	ec2 := "1.0\n2007-01-19\n2007-03-01\n2007-08-29\n2007-10-10\n2007-12-15\n2008-02-01\n2008-09-01\n2009-04-04\nlatest"
	openStack := "2012-08-10\n2013-04-04\n2013-10-17\n2015-10-15\n2016-06-30\n2016-10-06\n2017-02-22\n2018-08-27\n2020-10-14\n2025-04-04\nlatest"
	all := "meta_data.json\nuser_data\npassword\nvendor_data.json\nnetwork_data.json\nvendor_data2.json"
	for path, want := range map[string]string{
		"/": ec2, "//": ec2, "/.": ec2, "/x/..": ec2, "/ec2": ec2, "/ec2/": ec2, "": ec2,
		"/openstack": openStack, "/openstack/": openStack, "/latest/meta-data/../../openstack": openStack, "/../openstack": openStack,
		"/openstack/2012-08-10":                       "meta_data.json\nuser_data",
		"/openstack/2013-04-04":                       "meta_data.json\nuser_data\npassword",
		"/openstack/2013-10-17/":                      "meta_data.json\nuser_data\npassword\nvendor_data.json",
		"/openstack/2015-10-15":                       "meta_data.json\nuser_data\npassword\nvendor_data.json\nnetwork_data.json",
		"/openstack/2016-10-06/":                      all,
		"//openstack/./latest":                        all,
		"/1.0":                                        "meta-data/\nuser-data",
		"/ec2/2009-04-04/":                            "meta-data/\nuser-data",
		"/1.0/meta-data":                              "ami-id\nami-launch-index\nami-manifest-path\nhostname\ninstance-id\nlocal-ipv4\npublic-keys/\nreservation-id\nsecurity-groups",
		"/latest/meta-data/":                          "ami-id\nami-launch-index\nami-manifest-path\nblock-device-mapping/\nhostname\ninstance-action\ninstance-id\ninstance-type\nlocal-hostname\nlocal-ipv4\nplacement/\npublic-hostname\npublic-ipv4\npublic-keys/\nreservation-id\nsecurity-groups",
		"/latest/meta-data/public-keys/":              "0=key-0\n1=key-1",
		"/latest/meta-data/public-keys/1/":            "openssh-key",
		"/latest/meta-data/public-keys/1/openssh-key": "ssh-ed25519 BBBB two",
		"/latest/meta-data/instance-id/":              "i-6b1c2f0e", // a leaf with a slash is the leaf
		"/latest/user-data":                           "#cloud-config\npackages: [nginx]\n",
		"/openstack/2012-08-10/network_data.json/":    `{"links":[{"id":"eth0","vif_id":"eth0","type":"phy","mtu":null,"ethernet_mac_address":"52:54:00:12:34:56"}],"networks":[{"id":"network0","type":"ipv4","link":"eth0","ip_address":"192.0.2.10","netmask":"255.255.255.0","routes":[],"network_id":"eth0","services":[]}],"services":[]}`,
		"/ganeti/latest/os/parameters.json":           `{"motd":["hello","public"]}`,
	} {
		if status, body := w.get(path); status != 200 || body != want {
			t.Errorf("%q: %d %q, want %q", path, status, body, want)
		}
	}
	if leaves := crawl(w); len(leaves) != 206 {
		t.Errorf("a crawl found %d leaves", len(leaves))
	}
}

func TestWhatDoesNotExistIsNotFound(t *testing.T) {
	t.Parallel()
	w := newWorld(t, instance(), nil)
	for _, path := range []string{
		"/nonsense", "/latest/nonsense", "/latest/meta-data/instance-id/more", "/2099-01-01/meta-data/", "/openstack/2099-01-01",
		"/openstack/2012-08-10/password", "/openstack/2099-01-01/password", "/openstack/2013-04-04/vendor_data.json", "/openstack/2016-06-30/vendor_data2.json",
		"/openstack/content", "/openstack/content/0000", "/ec2/openstack/latest/user_data", "/ec2/ec2", "/ec2/nocloud/meta-data", "/ec2/imprint/v1/payload",
		"/latest/dynamic/instance-identity/document", "/ganeti", "/ganeti/latest", "/ganeti/latest/os/parameters.json/", "/ganeti//latest/os/parameters.json",
		"/ganeti/latest/os/../os/parameters.json", "/ganeti/latest/os/scripts/create", "/ganeti/2020-01-01/os/parameters.json", "/ganeti/latest/os/package",
		"/nocloud", "/nocloud/other", "/imprint", "/imprint/v1", "/imprint/v1/", "/imprint/v1/none", "/imprint/v1//payload", "/imprint/v1/param/", "/imprint/v1/param/a/b",
		"/imprint/v1/payload/", "/imprint/v2/payload", "/etc/passwd", "/../../etc/passwd", "/latest\x00", "*", "/openstack/latest/user_data\n",
	} {
		if status, body := w.get(path); status != 404 || body != "Not Found\n" {
			t.Errorf("%q: %d %q", path, status, body)
		}
	}
	if r := w.refusals(); r != nil {
		t.Errorf("what does not exist was reported as refused: %q", r)
	}
}

func TestContentTypesAreWhatClientsExpect(t *testing.T) {
	t.Parallel()
	w := newWorld(t, instance(), nil)
	const text, object = "text/plain; charset=UTF-8", "application/json"
	for path, want := range map[string]string{
		"/": text, "/openstack": text, "/openstack/latest": text, "/latest/meta-data/hostname": text, "/latest/user-data": text,
		"/openstack/latest/meta_data.json": object, "/openstack/latest/vendor_data.json": object, "/openstack/latest/vendor_data2.json": object,
		"/openstack/latest/network_data.json": text, "/openstack/latest/user_data": text, "/openstack/latest/password": text,
		"/ganeti/latest/os/parameters.json": object, "/nocloud/meta-data": text, "/imprint/v1/payload": object, "/imprint/v1/ca": text, "/nonsense": text,
	} {
		reply := w.reply(request(processPort, "GET", path, ""))
		if got := reply.Header()["Content-Type"]; len(got) != 1 || got[0] != want {
			t.Errorf("%s: %q", path, got)
		}
		if got := reply.Header().Get("Content-Length"); got != strconv.Itoa(reply.Body.Len()) {
			t.Errorf("%s: length %s of %d", path, got, reply.Body.Len())
		}
	}
}

func TestPagesAreOnlyRead(t *testing.T) {
	t.Parallel()
	w := newWorld(t, instance(), nil)
	for _, method := range []string{"POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "get"} {
		for _, path := range []string{"/latest/meta-data/hostname", "/openstack/latest/meta_data.json", "/nocloud/meta-data", "/ganeti/latest/meta_data.json"} {
			reply := w.reply(request(rootPort, method, path, ""))
			if reply.Code != 405 || reply.Header().Get("Allow") != "GET, HEAD" {
				t.Errorf("%s %s: %d, Allow %q", method, path, reply.Code, reply.Header().Get("Allow"))
			}
		}
	}
}

func TestUnknownGuestIsAskedToComeAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t, instance(), nil)
	w.snapshot.Store(nil)
	reply := w.reply(request(processPort, "GET", "/openstack", ""))
	if reply.Code != 503 || reply.Header().Get("Retry-After") != "1" {
		t.Errorf("%d, Retry-After %q", reply.Code, reply.Header().Get("Retry-After"))
	}
}
