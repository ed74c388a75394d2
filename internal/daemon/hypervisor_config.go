package daemon

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"imprint"
)

// HostConfig is the configuration of "imprint host" as it is written in a file. A
// field that a file leaves out has its value of [DefaultHostConfig].
type HostConfig struct {
	// Data holds the identity, the copy of the instances and the queue of reports.
	// Mode 0700.
	Data string `yaml:"data"`
	// Run holds the sockets to which machines connect.
	Run string `yaml:"run"`
	// GuestOwner is the user who runs the hypervisor and therefore owns the guest sockets.
	GuestOwner string `yaml:"guestOwner"`
	// Connect is the address of the check-in endpoint; "" finds it by its name.
	Connect string `yaml:"connect"`
	// Dial lists sockets on which a hypervisor listens, as for a server.
	Dial []DialConfig `yaml:"dial"`
	// Neutron is for agents that ask this host instead of the server.
	Neutron NeutronConfig `yaml:"neutron"`
	// Adopt lists interfaces that the hypervisor's platform makes, as for a server.
	Adopt []AdoptConfig `yaml:"adopt"`
	// DNS lists the name servers that DHCP tells guests, as for a server.
	DNS []string `yaml:"dns"`
}

// HostSettings are a host's configuration after all checks; only
// [HostConfig.Check] makes them.
type HostSettings struct {
	HostConfig
	dial        *Settings // of which only what is dialled counts
	nameServers []netip.Addr
}

// DefaultHostConfig returns the configuration of a host without a file.
func DefaultHostConfig() HostConfig {
	server := DefaultConfig()
	c := HostConfig{Data: "/var/lib/imprint-host", Run: server.Run}
	if os.Geteuid() != 0 {
		c.Data = filepath.Join(userDir("XDG_DATA_HOME", ".local/share"), "imprint-host")
	}
	return c
}

// ReadHostConfig reads path over the defaults. An unknown or wrong field is named
// with its line.
func ReadHostConfig(path string) (HostConfig, error) {
	c := DefaultHostConfig()
	return c, readConfig(path, "imprint host config example", &c)
}

// Check refuses what cannot work.
func (c HostConfig) Check() (*HostSettings, error) {
	s := &HostSettings{HostConfig: c}
	s.Dial, s.Adopt = slices.Clone(c.Dial), slices.Clone(c.Adopt)
	for field, dir := range map[string]*string{"data": &s.Data, "run": &s.Run} {
		abs, err := filepath.Abs(*dir)
		if err != nil || *dir == "" {
			return nil, imprint.Errorf(imprint.Invalid, "check", field, "%q is not a directory name", *dir)
		}
		*dir = abs
	}
	if s.Connect != "" {
		if _, port, err := net.SplitHostPort(s.Connect); err != nil || port == "" {
			return nil, imprint.Errorf(imprint.Invalid, "check", "connect", "%q is not an address with a port such as 192.0.2.1:8443", s.Connect)
		}
	}
	if err := s.Neutron.check(); err != nil {
		return nil, err
	}
	s.dial = &Settings{Config: Config{Dial: s.Dial, Run: s.Run}}
	if err := s.dial.checkDial(); err != nil {
		return nil, err
	}
	if err := checkAdopt(s.Adopt, nil); err != nil {
		return nil, err
	}
	var err error
	s.nameServers, err = nameServers(s.DNS)
	if err != nil {
		return nil, err
	}
	return s, nil
}

// Named returns the configuration with the names that its fields have in a file.
func (c HostConfig) Named() (map[string]any, error) { return named(c) }

// ExampleHostConfig shows every field and its default.
const ExampleHostConfig = `# imprint host --config FILE. Every line shows its default; leave out what you do not change.

# data: /var/lib/imprint-host         # identity, sealed copy of the instances, queue of reports
# run: /run/imprint                   # sockets to which machines connect
# guestOwner: ""                      # the user who runs the hypervisor, for example libvirt-qemu
# connect: ""                         # where the server's check-in endpoint is, if not where its name says

dial:                                 # where the hypervisor listens and imprint connects; the first that fits counts
  # - channel: serial                 # or virtio-serial
  #   socket: /run/qemu/{name}.sock   # {id}, {name} and {tenant} are the instance's
  #   instance: ""                    # an ID, NAME or TENANT/NAME; "" is every instance with the channel

neutron:                              # Neutron's metadata agents, for the instances that are placed on this host
  listen: ""                          # "127.0.0.1:8775", say; "" switches it off
  # secretFile: neutron.secret        # holds the agents' metadata_proxy_shared_secret; mode 0600
  # cert: neutron.pem
  # key: neutron.key
  # clientCA: agents.pem              # signed the agents' nova_client_cert
  # privateNetwork: false             # true goes without TLS, where nobody but the agents reaches it

adopt:                                # interfaces of the channel nic that the platform makes; the first entry that fits counts
  # - interface: vnet*                # a pattern: libvirt's are known by their MAC, others are asked for (imprint nic adopt)
  #                                   # or one interface, in which {name}, {tenant} and {tap} are the instance's
  #   instance: ""                    # an ID, NAME or TENANT/NAME; "" is every instance with the channel

dns: []                               # name servers, by IPv4 address, that DHCP tells guests over the channel nic
`
