package store

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"math"
	"net"
	"net/url"
	"os"
	"strings"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap/zapcore"
	"google.golang.org/grpc"

	"imprint"
)

// Cluster configures a store on an existing etcd cluster.
type Cluster struct {
	// Endpoints are the members' client URLs: https://host:port, or on this
	// machine also http://127.0.0.1:port and unix:///path.
	Endpoints []string
	// CA is the path of the PEM bundle that the members' certificates chain
	// to; "" is the system's. Cert and Key are the paths of our client
	// certificate and its key; "" if the cluster asks for none.
	CA, Cert, Key string
	// User and Password are for clusters that ask for them; "" for none.
	User     string
	Password imprint.Secret
	// Prefix is put before all keys, so that several can share a cluster; "" is "imprint/".
	Prefix string
	// StartTimeout bounds the start, and RequestTimeout each request; 0 is
	// 10 s and 5 s.
	StartTimeout, RequestTimeout time.Duration
	// Logger gets what the client says; nil discards it.
	Logger *slog.Logger
}

const (
	defaultDialTimeout    = 10 * time.Second
	defaultRequestTimeout = 5 * time.Second
	// A member that does not answer for this long is left for another one.
	keepAliveTime    = 10 * time.Second
	keepAliveTimeout = 3 * time.Second
)

// OpenCluster connects to an etcd cluster. It fails with kind
// [imprint.Invalid] if c is not usable, [imprint.Unavailable] if the cluster
// does not answer within c.StartTimeout or before ctx ends, and
// [imprint.Conflict] if a newer release wrote it.
func OpenCluster(ctx context.Context, c Cluster) (*Store, error) {
	operand := strings.Join(c.Endpoints, ",")
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	prefix := strings.TrimSuffix(orDefault(c.Prefix, defaultPrefix), "/") + "/"
	secure, err := checkEndpoints(c.Endpoints)
	if err != nil {
		return nil, err
	}
	cfg := clientv3.Config{
		Endpoints:            c.Endpoints,
		DialKeepAliveTime:    keepAliveTime,
		DialKeepAliveTimeout: keepAliveTimeout,
		Username:             c.User,
		Password:             string(c.Password.Reveal()),
		Logger:               newZap(c.Logger, new(atomic.Bool), zapcore.WriteThenPanic),
	}
	if secure {
		if cfg.TLS, err = c.tls(); err != nil {
			return nil, err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, orDefault(c.StartTimeout, defaultDialTimeout))
	defer cancel()
	cfg.DialTimeout = orDefault(c.StartTimeout, defaultDialTimeout) // bounds the login
	client, err := clientv3.New(cfg)
	if err != nil {
		return nil, during((&etcd{}).fault(err), "open", operand)
	}
	remote := clientv3.RetryKVClient(client)
	kv := &etcd{
		client: client,
		send: func(ctx context.Context, r *pb.TxnRequest) (*pb.TxnResponse, error) {
			return remote.Txn(ctx, r, grpc.MaxCallRecvMsgSize(math.MaxInt32)) // as the client's own
		},
		timeout: orDefault(c.RequestTimeout, defaultRequestTimeout),
		shut:    client.Close,
	}
	s := newStore(kv, prefix, nil)
	s.committer.patience, s.committer.maxFlights = kv.timeout, flightsOfCluster
	for {
		err := s.checkFormat(ctx, operand)
		if err == nil {
			return s, nil
		}
		// The cluster may be starting just now, too.
		if imprint.KindOf(err) != imprint.Unavailable || sleep(ctx, watchPauseMin) != nil {
			client.Close()
			return nil, err
		}
	}
}

// checkEndpoints reports whether the endpoints speak TLS. Without it only this
// machine is spoken to, because whoever reads along could act as imprint.
func checkEndpoints(endpoints []string) (secure bool, err error) {
	if len(endpoints) == 0 {
		return false, imprint.Errorf(imprint.Invalid, "open", "etcd cluster", "no endpoints are given")
	}
	for i, endpoint := range endpoints {
		u, err := url.Parse(endpoint)
		if err != nil || u.Host == "" && u.Scheme != "unix" {
			return false, imprint.Errorf(imprint.Invalid, "open", "etcd endpoint", "%q is not a URL", endpoint).
				WithHint("write it like https://etcd-1.example:2379")
		}
		local := u.Scheme == "unix" || u.Scheme == "http" && isLoopback(u.Hostname())
		switch {
		case u.Scheme != "https" && !local:
			return false, imprint.Errorf(imprint.Invalid, "open", "etcd endpoint", "%q is neither https nor on this machine", endpoint).
				WithHint("give the cluster TLS and use https://")
		case i > 0 && secure != (u.Scheme == "https"):
			return false, imprint.Errorf(imprint.Invalid, "open", "etcd endpoint", "%q: all endpoints must use TLS, or none", endpoint)
		}
		secure = u.Scheme == "https"
	}
	return secure, nil
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

func (c *Cluster) tls() (*tls.Config, error) {
	cfg := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.CA != "" {
		pem, err := os.ReadFile(c.CA)
		if err != nil {
			return nil, imprint.Errorf(imprint.Invalid, "read", "etcd CA", "%w", err)
		}
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM(pem) {
			return nil, imprint.Errorf(imprint.Invalid, "read", "etcd CA "+c.CA, "it holds no PEM certificate")
		}
	}
	if c.Cert != "" || c.Key != "" {
		pair, err := tls.LoadX509KeyPair(c.Cert, c.Key)
		if err != nil {
			return nil, imprint.Errorf(imprint.Invalid, "read", "etcd client certificate", "%w", err).
				WithHint("give both the certificate and its key, as PEM files")
		}
		cfg.Certificates = []tls.Certificate{pair}
	}
	return cfg, nil
}
