package cli

import (
	"crypto/tls"
	"crypto/x509"
	"os"

	"github.com/spf13/pflag"

	"imprint"
	"imprint/api"
)

// remote is a server that is reached over TCP, with a client certificate.
type remote struct{ url, ca, cert, key string }

func (r *remote) flags(f *pflag.FlagSet) {
	f.StringVar(&r.url, "server", "", "`URL` of a server elsewhere, https://HOST:PORT, instead of a control socket")
	f.StringVar(&r.ca, "server-ca", "", "CA `file` that the server's certificate chains to (default the system's)")
	f.StringVar(&r.cert, "client-cert", "", "client certificate `file` for --server")
	f.StringVar(&r.key, "client-key", "", "its key `file`")
}

// client returns a client of the server. It fails with kind [imprint.Invalid] if
// a file is not what its flag says.
func (r *remote) client() (*api.Client, error) {
	cert, err := tls.LoadX509KeyPair(r.cert, r.key)
	if err != nil {
		return nil, imprint.Errorf(imprint.Invalid, "read", "--client-cert and --client-key", "%w", err).
			WithHint("the server knows operators by their client certificate")
	}
	config := &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13}
	if r.ca != "" {
		pem, err := os.ReadFile(r.ca)
		if err != nil {
			return nil, imprint.Errorf(imprint.Invalid, "read", "--server-ca", "%w", err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, imprint.Errorf(imprint.Invalid, "read", "--server-ca", "%s holds no certificate in PEM", r.ca)
		}
	}
	return api.NewTLS(r.url, config)
}
