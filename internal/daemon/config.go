package daemon

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"go.yaml.in/yaml/v3"

	"imprint"
	"imprint/internal/hostapi"
	"imprint/internal/manifest"
	"imprint/internal/osdef"
)

// maxConfig is the size limit of a configuration file in bytes.
const maxConfig = 1 << 20

// maxRate bounds the requests a second that may be configured: no server answers more.
const maxRate = 1_000_000

// Config is the server's configuration as it is written in a file. A field that
// a file leaves out has its value of [DefaultConfig].
type Config struct {
	// Name is this server's host name: instances are placed on it, and its
	// issuance log is named after it.
	Name string `yaml:"name"`
	// Data holds the store, the issuance log and the key file. Mode 0700.
	Data string `yaml:"data"`
	// Run holds the sockets to which machines connect.
	Run string `yaml:"run"`
	// Socket is the control socket; root and the members of Group may use it.
	Socket string `yaml:"socket"`
	Group  string `yaml:"group"`
	// GuestOwner is the user who runs the hypervisor and therefore owns the guest sockets.
	GuestOwner string `yaml:"guestOwner"`
	// Dial lists sockets on which a hypervisor listens; the first entry that fits
	// an instance's channel counts.
	Dial []DialConfig `yaml:"dial"`
	// Adopt lists interfaces that the hypervisor's platform makes; the first entry
	// that fits an instance with the channel nic counts.
	Adopt []AdoptConfig `yaml:"adopt"`
	// DNS lists the name servers that DHCP tells guests over the channel nic, at
	// most [dhcp.MaxDNS] by IPv4 address; none by default.
	DNS []string `yaml:"dns"`
	// OSPath lists the directories in which OS definitions are looked for; they check
	// the parameters of instances that name one.
	OSPath []string `yaml:"osPath"`
	// KeyFile holds the key-encryption keys.
	KeyFile string `yaml:"keyFile"`
	// Signer is the socket of "imprint sign"; empty keeps the issuing keys in this process.
	Signer string `yaml:"signer"`
	// TrustDomain stands in the URI of every certificate.
	TrustDomain string `yaml:"trustDomain"`
	// BootWindow is how long after the first read over a link-local network user
	// data is served to stock software, for instances that do not say.
	BootWindow imprint.Duration `yaml:"bootWindow"`

	CheckIn  CheckInConfig  `yaml:"checkIn"`
	Hosts    HostsConfig    `yaml:"hosts"`
	Neutron  NeutronConfig  `yaml:"neutron"`
	API      APIConfig      `yaml:"api"`
	Operator string         `yaml:"operator"`
	Store    StoreConfig    `yaml:"store"`
	Tenancy  []TenantConfig `yaml:"tenants"`
}

// CheckInConfig is the endpoint that machines reach over the network.
type CheckInConfig struct {
	// Listen is an address such as ":8443"; empty switches the endpoint off.
	Listen string `yaml:"listen"`
	// URLs are the base URLs that payloads name; empty is https://CHECKIN-NAME:PORT
	// of the tenant.
	URLs []string `yaml:"urls"`
	// PerAddress and Total bound the requests a second; 0 is the default.
	PerAddress float64 `yaml:"perAddress"`
	Total      float64 `yaml:"total"`
}

// HostsConfig is for the hypervisors on which "imprint host" runs. They reach the
// check-in endpoint under a name of their own.
type HostsConfig struct {
	// Domains are the DNS suffixes of their names; empty means that there are none.
	Domains []string `yaml:"domains"`
	// CheckIn is the name; "" is imprint-hosts. before the first domain.
	CheckIn string `yaml:"checkIn"`
	// URLs are what their join files name; empty is https://CHECKIN:PORT.
	URLs []string `yaml:"urls"`
}

// APIConfig is the control API over TCP, with client certificates.
type APIConfig struct {
	Listen   string   `yaml:"listen"`
	Cert     string   `yaml:"cert"`
	Key      string   `yaml:"key"`
	ClientCA string   `yaml:"clientCA"`
	Allow    []string `yaml:"allow"` // subject common names of operators
}

// StoreConfig names an existing etcd cluster; without endpoints the server runs
// an etcd of its own in its data directory.
type StoreConfig struct {
	Endpoints []string `yaml:"endpoints"`
	CA        string   `yaml:"ca"`
	Cert      string   `yaml:"cert"`
	Key       string   `yaml:"key"`
}

// TenantConfig declares a tenant.
type TenantConfig struct {
	Name     string   `yaml:"name"`
	Domains  []string `yaml:"domains"`
	Networks []string `yaml:"networks"`
	CheckIn  string   `yaml:"checkIn"`
}

// Settings are a configuration after all checks; only [Config.Check] makes them.
type Settings struct {
	Config
	Tenants     []imprint.Tenant
	nameServers []netip.Addr
}

// DefaultConfig returns the configuration of a server without a file.
func DefaultConfig() Config {
	name, err := os.Hostname()
	if err != nil || imprint.CheckDNSName("name", strings.ToLower(name)) != nil {
		name = "localhost"
	}
	data, run := "/var/lib/imprint", "/run/imprint"
	if os.Geteuid() != 0 {
		data, run = filepath.Join(userDir("XDG_DATA_HOME", ".local/share"), "imprint"), userRunDir()
	}
	return Config{
		Name:        strings.ToLower(name),
		Data:        data,
		Run:         run,
		TrustDomain: "imprint.internal",
		BootWindow:  imprint.Duration(time.Hour),
		OSPath:      osdef.DefaultPath(),
		Operator:    "127.0.0.1:9640",
		Tenancy: []TenantConfig{{
			Name:     string(imprint.DefaultTenant),
			Domains:  []string{"internal"},
			Networks: []string{"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"},
		}},
	}
}

// DefaultSocket is the control socket that client verbs try when nothing names one.
func DefaultSocket() string {
	if os.Geteuid() == 0 {
		return "/run/imprint/imprint.sock"
	}
	return filepath.Join(userRunDir(), "imprint.sock")
}

// CheckDefaultSocket refuses a default socket in a directory that somebody else
// made: without XDG_RUNTIME_DIR it is below a directory where everybody may, and
// a false server would be told every value. Kind: Denied.
func CheckDefaultSocket() error {
	dir := filepath.Dir(DefaultSocket())
	info, err := os.Lstat(dir)
	if err != nil || os.Geteuid() == 0 {
		return nil // whoever uses the socket says so
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok || !info.IsDir() || int(stat.Uid) != os.Geteuid() || info.Mode().Perm()&0o022 != 0 {
		return imprint.Errorf(imprint.Denied, "use", dir, "it is not a directory that only this user can change").
			WithHint("set XDG_RUNTIME_DIR, or name the server's socket with --socket or IMPRINT_SOCKET")
	}
	return nil
}

func userRunDir() string {
	if dir := os.Getenv("XDG_RUNTIME_DIR"); dir != "" {
		return filepath.Join(dir, "imprint")
	}
	return filepath.Join(os.TempDir(), fmt.Sprintf("imprint-%d", os.Getuid()))
}

func userDir(env, fallback string) string {
	if dir := os.Getenv(env); dir != "" {
		return dir
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return filepath.Join(os.TempDir(), fmt.Sprintf("imprint-%d", os.Getuid()))
	}
	return filepath.Join(home, fallback)
}

// ReadConfig reads path over the defaults. An unknown or wrong field is named
// with its line.
func ReadConfig(path string) (Config, error) {
	c := DefaultConfig()
	return c, readConfig(path, "imprint config example", &c)
}

// readConfig reads path into c, a configuration with its defaults; example is the
// command that prints one.
func readConfig(path, example string, c any) error {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return imprint.Errorf(imprint.NotFound, "read", path, "no such file").WithHint("write one with: %s > %s", example, path)
	}
	if err != nil {
		return imprint.Errorf(imprint.Unavailable, "read", path, "%w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxConfig+1))
	if err != nil {
		return imprint.Errorf(imprint.Unavailable, "read", path, "%w", err)
	}
	if len(b) > maxConfig {
		return imprint.Errorf(imprint.Invalid, "read", path, "more than %d bytes", maxConfig)
	}
	return parseConfig(path, example, b, c)
}

func parseConfig(path, example string, b []byte, c any) error {
	dec := yaml.NewDecoder(bytes.NewReader(b))
	dec.KnownFields(true)
	if err := dec.Decode(c); err != nil && err != io.EOF {
		return imprint.Errorf(imprint.Invalid, "read", path, "%s", yamlFault(err)).
			WithHint("compare with: %s", example)
	}
	if dec.Decode(new(yaml.Node)) != io.EOF {
		return imprint.Errorf(imprint.Invalid, "read", path, "it holds more than one document").WithHint("keep everything under one ---")
	}
	return nil
}

var goType = regexp.MustCompile(`field (\S+) not found in type \S+`)

// yamlFault turns the decoder's words into the user's.
func yamlFault(err error) string {
	var t *yaml.TypeError
	if errors.As(err, &t) {
		return goType.ReplaceAllString(strings.Join(t.Errors, "; "), `unknown field "$1"`)
	}
	return strings.TrimPrefix(err.Error(), "yaml: ")
}

// Check fills in what follows from other fields and refuses what cannot work.
func (c Config) Check() (*Settings, error) {
	s := &Settings{Config: c}
	s.Tenancy, s.Dial, s.Adopt = slices.Clone(c.Tenancy), slices.Clone(c.Dial), slices.Clone(c.Adopt) // what is filled in stays out of c
	if err := imprint.CheckDNSName("name", c.Name); err != nil {
		return nil, err
	}
	if err := imprint.CheckDNSName("trustDomain", c.TrustDomain); err != nil {
		return nil, err
	}
	for field, dir := range map[string]*string{"data": &s.Data, "run": &s.Run} {
		abs, err := filepath.Abs(*dir)
		if err != nil || *dir == "" {
			return nil, imprint.Errorf(imprint.Invalid, "check", field, "%q is not a directory name", *dir)
		}
		*dir = abs
	}
	if s.Socket == "" {
		s.Socket = filepath.Join(s.Run, "imprint.sock")
	}
	for _, dir := range s.OSPath {
		if !filepath.IsAbs(dir) {
			return nil, imprint.Errorf(imprint.Invalid, "check", "osPath", "%q is not an absolute path", dir)
		}
	}
	if s.KeyFile == "" {
		s.KeyFile = filepath.Join(s.Data, "kek")
	}
	if c.API.Listen != "" && (c.API.Cert == "" || c.API.Key == "" || c.API.ClientCA == "" || len(c.API.Allow) == 0) {
		return nil, imprint.Errorf(imprint.Invalid, "check", "api", "over TCP it needs cert, key, clientCA and allow").
			WithHint("leave api.listen empty to use the control socket only")
	}
	for field, rate := range map[string]float64{"checkIn.perAddress": c.CheckIn.PerAddress, "checkIn.total": c.CheckIn.Total} {
		if !(rate >= 0 && rate <= maxRate) { // also what is no number
			return nil, imprint.Errorf(imprint.Invalid, "check", field, "%v is not a number of requests a second; 0 to %d are", rate, maxRate).
				WithHint("leave it out, or write 0, for the default")
		}
	}
	if d := time.Duration(c.BootWindow); d < manifest.MinBootWindow || d > manifest.MaxBootWindow {
		return nil, imprint.Errorf(imprint.Invalid, "check", "bootWindow", "%s is not between %s and %s", c.BootWindow, manifest.MinBootWindow, imprint.Duration(manifest.MaxBootWindow)).
			WithHint("leave it out for one hour")
	}
	if (c.Store.Cert == "") != (c.Store.Key == "") {
		return nil, imprint.Errorf(imprint.Invalid, "check", "store", "cert and key come together")
	}
	if err := c.Neutron.check(); err != nil {
		return nil, err
	}
	if err := s.checkTenants(); err != nil {
		return nil, err
	}
	if err := s.checkDial(); err != nil {
		return nil, err
	}
	if err := checkAdopt(s.Adopt, s.Tenants); err != nil {
		return nil, err
	}
	var err error
	s.nameServers, err = nameServers(s.DNS)
	if err != nil {
		return nil, err
	}
	return s, nil
}

func (s *Settings) checkTenants() error {
	names, checkIns := map[string]bool{}, map[string]string{}
	for i := range s.Tenancy {
		t := &s.Tenancy[i]
		what := "tenants[" + t.Name + "]"
		if err := imprint.CheckLabel("tenant name", t.Name); err != nil {
			return err
		}
		if names[t.Name] {
			return imprint.Errorf(imprint.Invalid, "check", what, "two tenants have this name")
		}
		names[t.Name] = true
		if len(t.Domains) == 0 {
			return imprint.Errorf(imprint.Invalid, "check", what, "it has no domains, so it could certify no name").
				WithHint("list the DNS suffixes that belong to it under domains")
		}
		tenant := imprint.Tenant{Name: imprint.TenantName(t.Name), Domains: t.Domains}
		for _, d := range t.Domains {
			if err := imprint.CheckDNSName(what+" domains", d); err != nil {
				return err
			}
		}
		for _, n := range t.Networks {
			prefix, err := netip.ParsePrefix(n)
			if err != nil || prefix != prefix.Masked() {
				return imprint.Errorf(imprint.Invalid, "check", what+" networks", "%q is not a prefix such as 10.0.0.0/8", n)
			}
			tenant.Networks = append(tenant.Networks, prefix)
		}
		if t.CheckIn == "" {
			t.CheckIn = "imprint." + t.Domains[0]
		}
		if err := imprint.CheckDNSName(what+" checkIn", t.CheckIn); err != nil {
			return err
		}
		if other, taken := checkIns[t.CheckIn]; taken {
			return imprint.Errorf(imprint.Invalid, "check", what, "tenant %s has the check-in name %s already", other, t.CheckIn).
				WithHint("give each tenant a checkIn name of its own")
		}
		checkIns[t.CheckIn] = t.Name
		tenant.CheckIn = t.CheckIn
		s.Tenants = append(s.Tenants, tenant)
	}
	if names[string(hostapi.Tenant)] {
		return imprint.Errorf(imprint.Invalid, "check", "tenants["+string(hostapi.Tenant)+"]", "the name is that of the hypervisors' tenant").
			WithHint("choose another; hypervisors are configured under hosts")
	}
	if err := s.checkHosts(checkIns); err != nil {
		return err
	}
	if !names[string(imprint.DefaultTenant)] {
		return imprint.Errorf(imprint.Invalid, "check", "tenants", "there is no tenant %q", imprint.DefaultTenant).
			WithHint("add it; whoever names no tenant means it")
	}
	return nil
}

// checkHosts adds the hypervisors' tenant, if there are to be any.
func (s *Settings) checkHosts(checkIns map[string]string) error {
	h := &s.Hosts
	if len(h.Domains) == 0 {
		return nil
	}
	if s.CheckIn.Listen == "" {
		return imprint.Errorf(imprint.Invalid, "check", "hosts", "hypervisors connect to the check-in endpoint, which is switched off").
			WithHint("set checkIn.listen, for example to \":8443\"")
	}
	for _, d := range h.Domains {
		if err := imprint.CheckDNSName("hosts domains", d); err != nil {
			return err
		}
	}
	if h.CheckIn == "" {
		h.CheckIn = "imprint-hosts." + h.Domains[0]
	}
	if err := imprint.CheckDNSName("hosts checkIn", h.CheckIn); err != nil {
		return err
	}
	for _, raw := range h.URLs {
		if u, err := url.Parse(raw); err != nil || u.Scheme != "https" || u.Hostname() != h.CheckIn {
			return imprint.Errorf(imprint.Invalid, "check", "hosts urls", "%q is not https://%s with a port", raw, h.CheckIn).
				WithHint("the name tells the server that a hypervisor comes; where it is can be said on the hypervisor, with connect")
		}
	}
	if other, taken := checkIns[h.CheckIn]; taken {
		return imprint.Errorf(imprint.Invalid, "check", "hosts", "tenant %s has the check-in name %s already", other, h.CheckIn).
			WithHint("give the hypervisors a checkIn name of their own")
	}
	s.Tenants = append(s.Tenants, imprint.Tenant{Name: hostapi.Tenant, Domains: h.Domains, CheckIn: h.CheckIn})
	return nil
}

// Tenant returns the tenant called name.
func (s *Settings) Tenant(name imprint.TenantName) (imprint.Tenant, error) {
	for _, t := range s.Tenants {
		if t.Name == name {
			return t, nil
		}
	}
	return imprint.Tenant{}, imprint.Errorf(imprint.NotFound, "find", "tenant "+string(name), "it is not in the server's configuration").
		WithHint("add it under tenants and restart the server")
}

// Named returns the configuration with the names that its fields have in a file.
func (c Config) Named() (map[string]any, error) { return named(c) }

func named(c any) (map[string]any, error) {
	fields := map[string]any{}
	b, err := yaml.Marshal(c)
	if err == nil {
		err = yaml.Unmarshal(b, &fields)
	}
	if err != nil {
		return nil, imprint.Errorf(imprint.Internal, "write", "configuration", "%w", err)
	}
	return fields, nil
}

// ExampleConfig shows every field and its default.
const ExampleConfig = `# imprint serve --config FILE. Every line shows its default; leave out what you do not change.

# name: this-host                     # where instances without a host are placed
# data: /var/lib/imprint              # store, issuance log, key file
# run: /run/imprint                   # sockets to which machines connect
# socket: /run/imprint/imprint.sock   # control socket
# group: ""                           # whose members may use it besides root
# guestOwner: ""                      # the user who runs the hypervisor, for example libvirt-qemu
# keyFile: /var/lib/imprint/kek       # key-encryption keys, mode 0600; back it up apart from data
# signer: ""                          # socket of "imprint sign", which then holds the issuing keys
# trustDomain: imprint.internal       # in the spiffe:// name of every certificate
# bootWindow: 1h                      # how long stock software may read user data over a NIC, from the first read on
# operator: 127.0.0.1:9640            # /metrics, /healthz, /readyz; "" switches it off

dial:                                 # where the hypervisor listens and imprint connects; the first that fits counts
  # - channel: serial                 # or virtio-serial
  #   socket: /run/qemu/{name}.sock   # {id}, {name} and {tenant} are the instance's
  #   instance: ""                    # an ID, NAME or TENANT/NAME; "" is every instance with the channel

adopt:                                # interfaces of the channel nic that the platform makes; the first entry that fits counts
  # - interface: vnet*                # a pattern: libvirt's are known by their MAC, others are asked for (imprint nic adopt)
  #                                   # or one interface, in which {name}, {tenant} and {tap} are the instance's
  #   instance: ""                    # an ID, NAME or TENANT/NAME; "" is every instance with the channel

dns: []                               # name servers, by IPv4 address, that DHCP tells guests over the channel nic

checkIn:                              # EST, for machines whose payload came one way
  listen: ""                          # ":8443", say; "" switches it off
  urls: []                            # what payloads name; default https://CHECKIN:PORT
  # perAddress: 20                    # requests a second from one address
  # total: 5000                       # requests a second altogether

hosts:                                # other hypervisors, on which "imprint host" runs; they use the check-in endpoint
  domains: []                         # the suffixes of their names; empty: there are none
  checkIn: ""                         # the name under which they reach it; "" is imprint-hosts.DOMAIN
  # urls: []                          # what join files name; default https://CHECKIN:PORT

neutron:                              # Neutron's metadata agents, which ask imprint in the place of Nova
  listen: ""                          # ":8775", say; "" switches it off
  # secretFile: neutron.secret        # holds the agents' metadata_proxy_shared_secret; mode 0600
  # cert: neutron.pem
  # key: neutron.key
  # clientCA: agents.pem              # signed the agents' nova_client_cert
  # privateNetwork: false             # true goes without TLS, where nobody but the agents reaches it

api:                                  # the control API over TCP; off by default
  listen: ""
  # cert: api.pem
  # key: api.key
  # clientCA: operators.pem
  # allow: [alice]                    # common names of the client certificates

store:                                # an etcd of your own; without endpoints one runs inside the server
  endpoints: []
  # ca: etcd-ca.pem
  # cert: etcd.pem
  # key: etcd.key

tenants:
  - name: default
    domains: [internal]               # certificates may name these and what is below them
    networks: [10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16, "fc00::/7"]
    # checkIn: imprint.internal       # the name under which it checks in; one for each tenant
`
