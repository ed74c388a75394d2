package cli

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"k8s.io/klog/v2"

	"imprint"
	"imprint/internal/daemon"
)

func (p *program) serveCommand() *cobra.Command {
	var file, logLevel, data, run, name, checkIn, operator string
	var endpoints, rootKeys []string
	var etcdCA, etcdCert, etcdKey string
	c := &cobra.Command{
		Use:   "serve",
		Short: "Run the server: store, decisions, control API, check-in endpoint, guest channels",
		Long: `Run the server. Without any option it keeps its data in /var/lib/imprint (as an
ordinary user below the home directory) and runs an etcd of its own there. Flags
win over the configuration file.`,
		Example: "  imprint serve\n  imprint serve --config /etc/imprint/server.yaml\n  imprint serve --data ./data --run ./run --check-in :8443",
		Args:    noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			config := daemon.DefaultConfig()
			if file != "" {
				var err error
				if config, err = daemon.ReadConfig(file); err != nil {
					return err
				}
			}
			for flag, field := range map[string]*string{
				"data": &config.Data, "run": &config.Run, "name": &config.Name, "socket": &config.Socket,
				"check-in": &config.CheckIn.Listen, "operator": &config.Operator,
				"etcd-ca": &config.Store.CA, "etcd-cert": &config.Store.Cert, "etcd-key": &config.Store.Key,
			} {
				if f := c.Flags().Lookup(flag); f.Changed {
					*field = f.Value.String()
				}
			}
			if c.Flags().Changed("etcd-endpoints") {
				config.Store.Endpoints = endpoints
			}
			settings, err := config.Check()
			if err != nil {
				return err
			}
			logger, err := newLogger(p.err, logLevel)
			if err != nil {
				return usagef(c, "%v", err)
			}
			roots, err := readRootKeys(rootKeys)
			if err != nil {
				return err
			}
			return p.serve(c.Context(), settings, roots, logger)
		},
	}
	f := c.Flags()
	f.StringVar(&file, "config", "", "configuration `file`; see imprint config example")
	f.StringVar(&data, "data", "", "`directory` of the store, the log and the keys")
	f.StringVar(&run, "run", "", "`directory` of the sockets that machines connect to")
	f.StringVar(&name, "name", "", "this server's host name")
	f.StringVar(&checkIn, "check-in", "", "`address` of the check-in endpoint, such as :8443")
	f.StringVar(&operator, "operator", "", "`address` of /metrics, /healthz and /readyz")
	f.StringSliceVar(&endpoints, "etcd-endpoints", nil, "use this etcd cluster instead of an own etcd")
	f.StringVar(&etcdCA, "etcd-ca", "", "CA `file` of the cluster")
	f.StringVar(&etcdCert, "etcd-cert", "", "client certificate `file` for the cluster")
	f.StringVar(&etcdKey, "etcd-key", "", "its key `file`")
	f.StringArrayVar(&rootKeys, "root-key", nil, "`TENANT=FILE`: an exported root key, to certify the tenant's changed names once; repeatable")
	f.StringVar(&logLevel, "log-level", "info", "debug, info, warn or error")
	c.MarkFlagFilename("config", "yaml", "yml")
	return c
}

func (p *program) serve(ctx context.Context, s *daemon.Settings, roots map[imprint.TenantName]imprint.Secret, logger *slog.Logger) error {
	klog.SetSlogLogger(daemon.Chatter(logger)) // the issuance log's library logs there
	d, err := daemon.Open(ctx, s, daemon.Options{Version: version(), Logger: logger, RootKeys: roots, Serving: func() {
		if isTerminal(p.err) {
			fmt.Fprintf(p.err, "imprint serves machines on %s; Ctrl-C ends it.\nElsewhere: export IMPRINT_SOCKET=%s; imprint create -f FILE\n", s.Name, s.Socket)
		}
	}})
	if err != nil {
		return err
	}
	return d.Run(ctx)
}

// readRootKeys reads the files of TENANT=FILE.
func readRootKeys(args []string) (map[imprint.TenantName]imprint.Secret, error) {
	keys := map[imprint.TenantName]imprint.Secret{}
	for _, arg := range args {
		tenant, file, ok := strings.Cut(arg, "=")
		if !ok {
			return nil, imprint.Errorf(imprint.Invalid, "read", "--root-key "+arg, "it is not TENANT=FILE").
				WithHint("write it like --root-key default=root.pem")
		}
		b, err := os.ReadFile(file)
		if err != nil {
			return nil, fileError("read", file, err)
		}
		keys[imprint.TenantName(tenant)] = imprint.NewSecret(b)
	}
	return keys, nil
}

// newLogger writes lines for people to a terminal and JSON elsewhere.
func newLogger(w io.Writer, level string) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, fmt.Errorf("--log-level %q is none of debug, info, warn, error", level)
	}
	opts := &slog.HandlerOptions{Level: l}
	if isTerminal(w) {
		return slog.New(slog.NewTextHandler(w, opts)), nil
	}
	return slog.New(slog.NewJSONHandler(w, opts)), nil
}

func (p *program) signCommand() *cobra.Command {
	var dir, listen, group, logLevel string
	var make int
	c := &cobra.Command{
		Use:   "sign --keys DIR --listen SOCKET",
		Short: "Hold the issuing keys in a process of their own",
		Long: `Hold the issuing keys in a process of their own and sign for the server over a
unix socket. The server then names the socket as "signer" in its configuration and
has no issuing key. Keys that do not exist yet are made: two for each tenant.`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			logger, err := newLogger(p.err, logLevel)
			if err != nil {
				return usagef(c, "%v", err)
			}
			return daemon.Sign(c.Context(), daemon.SignConfig{Dir: dir, Socket: listen, Group: group, Make: make, Logger: logger})
		},
	}
	f := c.Flags()
	f.StringVar(&dir, "keys", "", "`directory` of the keys, mode 0700")
	f.StringVar(&listen, "listen", "", "the `socket` to serve")
	f.StringVar(&group, "group", "", "a `group` whose members may connect, besides root and this user")
	f.IntVar(&make, "make", 2, "have at least this many keys")
	f.StringVar(&logLevel, "log-level", "info", "debug, info, warn or error")
	c.MarkFlagRequired("keys")
	c.MarkFlagRequired("listen")
	return c
}

func (p *program) sealCommand() *cobra.Command {
	c := group(&cobra.Command{
		Use:   "seal",
		Short: "Change the key that protects values at rest",
	})
	c.AddCommand(&cobra.Command{
		Use:   "rotate",
		Short: "Make a new key-encryption key and give it everything that is sealed",
		Long: `Make a new key-encryption key, give it every sealed value and key in the store, and
forget the old one. The server goes on meanwhile. If it is interrupted the old keys
stay in the key file, and it can be repeated. Back the key file up again afterwards.

Each hypervisor then gives its own copy a new key of its own, within seconds or as
soon as it is connected again; its log says so.`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			client := p.client()
			defer client.Close()
			r, err := client.RotateSealing(c.Context())
			if err != nil {
				return err
			}
			return p.print(r, func(w io.Writer) {
				fmt.Fprintf(w, "new key %s; values of %d instances sealed anew\n", r.Key, r.Instances)
			})
		},
	})
	return c
}
