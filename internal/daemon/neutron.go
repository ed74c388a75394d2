package daemon

import (
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"os"

	"golang.org/x/sync/errgroup"

	"imprint"
	"imprint/internal/host"
	"imprint/internal/metadata"
	"imprint/internal/server"
)

// NeutronConfig is the endpoint that Neutron's metadata agents ask in the place
// of Nova's, for instances with the channel neutron.
type NeutronConfig struct {
	// Listen is an address such as ":8775"; empty switches the endpoint off.
	Listen string `yaml:"listen"`
	// SecretFile holds metadata_proxy_shared_secret. Mode 0600.
	SecretFile string `yaml:"secretFile"`
	// Cert and Key are the endpoint's own; ClientCA signed the agents' certificates.
	Cert     string `yaml:"cert"`
	Key      string `yaml:"key"`
	ClientCA string `yaml:"clientCA"`
	// PrivateNetwork says that nobody but the agents reaches the endpoint, so that
	// it goes without TLS.
	PrivateNetwork bool `yaml:"privateNetwork"`
}

// maxProxySecret is the size limit of the secret's file in bytes.
const maxProxySecret = 4 << 10

// check refuses an endpoint that cannot work, or that would be open to everybody.
func (c *NeutronConfig) check() error {
	if c.Listen == "" {
		return nil
	}
	if c.SecretFile == "" {
		return imprint.Errorf(imprint.Invalid, "check", "neutron", "it needs secretFile").
			WithHint("put the agents' metadata_proxy_shared_secret into a file of mode 0600; leave neutron.listen empty to do without")
	}
	given := 0
	for _, file := range []string{c.Cert, c.Key, c.ClientCA} {
		if file != "" {
			given++
		}
	}
	switch {
	case c.PrivateNetwork && given > 0:
		return imprint.Errorf(imprint.Invalid, "check", "neutron", "privateNetwork goes without TLS, so that cert, key and clientCA would have no effect").
			WithHint("leave privateNetwork out; TLS is the better of the two")
	case !c.PrivateNetwork && given < 3:
		return imprint.Errorf(imprint.Invalid, "check", "neutron", "it needs cert, key and clientCA").
			WithHint("only where no guest reaches neutron.listen, set privateNetwork: true instead")
	}
	return nil
}

// neutron is the endpoint of one host role for Neutron's agents.
type neutron struct {
	address string
	proxy   *metadata.Proxy
	tls     *tls.Config // nil if its network is private
}

// open reads the endpoint's files; guests are those that it finds. It returns nil
// if there is to be no endpoint, and fails if a file cannot be what it is for.
func (c *NeutronConfig) open(guests metadata.ProxiedGuests, logger *slog.Logger) (*neutron, error) {
	if c.Listen == "" {
		return nil, nil
	}
	secret, err := readProxySecret(c.SecretFile)
	if err != nil {
		return nil, err
	}
	n := &neutron{address: c.Listen}
	if !c.PrivateNetwork {
		cert, clients, err := readTLS("neutron", c.Cert, c.Key, c.ClientCA)
		if err != nil {
			return nil, err
		}
		n.tls = metadata.ProxyTLS(cert, clients)
	}
	n.proxy, err = metadata.NewProxy(metadata.ProxyConfig{Secret: secret, Guests: guests, Logger: logger})
	return n, err
}

// readProxySecret reads the secret without the white space around it, which
// Neutron does not take for part of it either.
func readProxySecret(path string) (imprint.Secret, error) {
	const what = "neutron.secretFile"
	f, err := os.Open(path)
	if err != nil {
		return imprint.Secret{}, imprint.Errorf(imprint.Invalid, "read", what, "%w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err == nil {
		err = checkKeyMode(path, info)
	}
	if err != nil {
		return imprint.Secret{}, err
	}
	b, err := io.ReadAll(io.LimitReader(f, maxProxySecret+1))
	if err != nil {
		return imprint.Secret{}, imprint.Errorf(imprint.Invalid, "read", what, "%w", err)
	}
	if len(b) > maxProxySecret {
		return imprint.Secret{}, imprint.Errorf(imprint.Invalid, "read", what, "%s has more than %d bytes", path, maxProxySecret)
	}
	return imprint.NewSecret(bytes.TrimSpace(b)), nil
}

// listen opens the endpoint; nil has none.
func (n *neutron) listen() (net.Listener, error) {
	if n == nil {
		return nil, nil
	}
	l, err := server.ListenTCP(n.address)
	if err != nil || n.tls == nil {
		return l, err
	}
	return tls.NewListener(l, n.tls), nil
}

// serveGuests runs a host role and, if agents is not nil, its endpoint for
// Neutron's agents. That ends first: a guest whose host has gone would be told
// that it does not exist.
func (n *neutron) serveGuests(ctx context.Context, role *host.Host, agents net.Listener) error {
	if agents == nil {
		return role.Run(ctx)
	}
	serving, stop := context.WithCancel(context.WithoutCancel(ctx))
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return role.Run(serving) })
	group.Go(func() error {
		defer stop()
		return n.proxy.Serve(ctx, agents)
	})
	return group.Wait()
}
