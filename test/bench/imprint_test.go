//go:build bench

package bench

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/pprof"
	"strings"
	"sync"
	"testing"
	"time"

	"imprint"
	"imprint/internal/ca"
	"imprint/internal/enrol"
	"imprint/internal/est"
	"imprint/internal/store"
)

// serverDir, in the environment, makes this test program a server of imprint on
// that directory instead, so that server and load are two processes as with the peer.
const serverDir = "IMPRINT_BENCH_SERVER"

func TestMain(m *testing.M) {
	if dir := os.Getenv(serverDir); dir != "" {
		if err := serve(dir, os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// hello is what a server says when it is ready.
type hello struct {
	URL  string `json:"url"`
	Root []byte `json:"root"` // DER
}

// serve is the server process: the check-in endpoint over the embedded etcd, the
// authority and its log, all durable. It obeys lines on in until that ends:
//
//	reserve PREFIX N   creates instances PREFIX-0 to PREFIX-(N-1); answers their tokens
//	profile FILE       starts a CPU profile, or stops it if FILE is missing; answers null
func serve(dir string, in io.Reader, out io.Writer) (err error) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	logger := slog.New(slog.DiscardHandler)
	db, err := store.OpenEmbedded(ctx, store.Embedded{Dir: filepath.Join(dir, "etcd"), Logger: logger})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	tenant := imprint.Tenant{Name: imprint.DefaultTenant, Domains: []string{"bench.internal"}}
	authority, log, err := openAuthority(ctx, tenant, filepath.Join(dir, "log"), logger)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, log.Close()) }()
	engine := enrol.New(enrol.Config{Store: db, Issuer: authority, Now: time.Now, Logger: logger})
	endpoint, err := openEndpoint(ctx, engine, db, authority, logger)
	if err != nil {
		return err
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	served := make(chan error, 1)
	go func() { served <- endpoint.Serve(ctx, ln) }()
	defer func() {
		cancel()
		err = errors.Join(err, <-served)
	}()

	answer := json.NewEncoder(out)
	if err := answer.Encode(hello{"https://" + ln.Addr().String(), authority.Root()}); err != nil {
		return err
	}
	for lines := bufio.NewScanner(in); lines.Scan(); {
		var result any
		switch words := strings.Fields(lines.Text()); words[0] {
		case "reserve":
			var n int
			if _, err := fmt.Sscan(words[2], &n); err != nil {
				return err
			}
			if result, err = reserve(ctx, db, engine, tenant, words[1], n); err != nil {
				return err
			}
		case "profile":
			if err := profile(words[1:]); err != nil {
				return err
			}
		}
		if err := answer.Encode(result); err != nil {
			return err
		}
	}
	return nil
}

func openAuthority(ctx context.Context, tenant imprint.Tenant, dir string, logger *slog.Logger) (*ca.Authority, *ca.Log, error) {
	logKey, _, err := ca.GenerateLogKey("localhost")
	if err != nil {
		return nil, nil, err
	}
	log, err := ca.OpenLog(ctx, ca.LogConfig{Dir: dir, Key: logKey, Now: time.Now, Logger: logger})
	if err != nil {
		return nil, nil, err
	}
	var keys [3]*ecdsa.PrivateKey
	for i := range keys {
		if keys[i], err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
			return nil, nil, err
		}
	}
	root, issuing, ssh := keys[0], keys[1], keys[2]
	material, err := ca.Create(ca.Profile{Tenant: tenant, TrustDomain: "imprint.internal"},
		ca.CreateKeys{Root: root, Issuing: issuing.Public(), SSH: ssh.Public()}, time.Now())
	if err != nil {
		return nil, nil, err
	}
	authority, err := ca.Open(material, ca.Keys{Issuing: issuing, SSH: ssh}, log)
	return authority, log, err
}

func openEndpoint(ctx context.Context, engine *enrol.Engine, db *store.Store, authority *ca.Authority, logger *slog.Logger) (*est.Server, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	leaf, err := authority.IssueEndpoint(ctx, ca.Endpoint{
		PublicKey: key.Public(), Serial: imprint.NewSerial(),
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
	})
	if err != nil {
		return nil, err
	}
	limits := est.DefaultLimits()
	limits.Rate, limits.TotalRate = 0, 0 // one address is the whole site here
	return est.New(est.Config{
		Engine: engine, Instances: db, Authority: published{authority}, Values: none{}, Limits: limits, Logger: logger,
		Tenants: []est.Tenant{{
			Name: imprint.DefaultTenant, Names: []string{"localhost"}, Trust: authority.Issuers(),
			Certificate: tls.Certificate{Certificate: [][]byte{leaf, authority.Issuing()}, PrivateKey: key},
		}},
	})
}

// published is what the endpoint asks an authority for.
type published struct{ *ca.Authority }

func (p published) Bundle(context.Context, imprint.TenantName) ([]*x509.Certificate, error) {
	return x509.ParseCertificates(bytes.Join(p.Authority.Bundle(), nil))
}

func (p published) CRL(context.Context, imprint.TenantName) ([]byte, error) {
	return p.Authority.CRL(ca.CRLRequest{Number: 1, ThisUpdate: time.Now(), NextUpdate: time.Now().Add(time.Hour)})
}

func (p published) Identify(leaf *x509.Certificate) (imprint.Identity, error) {
	return p.Authority.Identify(leaf, time.Now())
}

// none has no parameters.
type none struct{}

func (none) Value(context.Context, *imprint.Instance, string) (imprint.Secret, error) {
	return imprint.Secret{}, imprint.Errorf(imprint.NotFound, "read", "parameter", "none here")
}

func (none) Held(context.Context, *imprint.Instance) (map[string]bool, error) { return nil, nil }

// reservation is what a machine's payload would tell it.
type reservation struct {
	ID    imprint.InstanceID `json:"id"`
	Token string             `json:"token"`
}

// reserve creates n instances with tokens, 64 at a time so that they share syncs.
func reserve(ctx context.Context, db *store.Store, engine *enrol.Engine, tenant imprint.Tenant, prefix string, n int) ([]reservation, error) {
	list, errs := make([]reservation, n), make([]error, n)
	slots := make(chan struct{}, 64)
	var group sync.WaitGroup
	for i := range n {
		slots <- struct{}{}
		group.Go(func() {
			defer func() { <-slots }()
			list[i], errs[i] = reserveOne(ctx, db, engine, tenant, fmt.Sprintf("%s-%d", prefix, i))
		})
	}
	group.Wait()
	return list, errors.Join(errs...)
}

func reserveOne(ctx context.Context, db *store.Store, engine *enrol.Engine, tenant imprint.Tenant, name string) (reservation, error) {
	spec := imprint.Spec{
		Name: imprint.InstanceName(name), Tenant: tenant.Name, DNSNames: []string{name + ".bench.internal"},
	}
	inst, change, err := enrol.Reserve(spec, tenant, time.Now())
	if err != nil {
		return reservation{}, err
	}
	if err := db.Create(ctx, &inst, nil, change); err != nil {
		return reservation{}, err
	}
	token, err := engine.Token(ctx, inst.ID, time.Hour)
	return reservation{inst.ID, string(token.Reveal())}, err
}

func profile(files []string) error {
	if len(files) == 0 {
		pprof.StopCPUProfile()
		return nil
	}
	f, err := os.Create(files[0])
	if err != nil {
		return err
	}
	return pprof.StartCPUProfile(f)
}

// imprintServer is a running server process.
type imprintServer struct {
	hello
	roots *x509.CertPool
	in    io.Writer
	out   *json.Decoder

	process *os.Process
}

// startImprint runs a server process until the test ends.
func startImprint(t testing.TB) *imprintServer {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), serverDir+"="+t.TempDir())
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("server: %v\n%s", err, log.Bytes())
		}
	})
	s := &imprintServer{in: in, out: json.NewDecoder(out), roots: x509.NewCertPool(), process: cmd.Process}
	if err := s.out.Decode(&s.hello); err != nil {
		t.Fatal(err)
	}
	root, err := x509.ParseCertificate(s.Root)
	if err != nil {
		t.Fatal(err)
	}
	s.roots.AddCert(root)
	return s
}

// tell sends the server a line and waits for its answer.
func (s *imprintServer) tell(t testing.TB, answer any, line string) {
	t.Helper()
	if _, err := io.WriteString(s.in, line+"\n"); err != nil {
		t.Fatal(err)
	}
	if err := s.out.Decode(answer); err != nil {
		t.Fatalf("%s: %v", line, err)
	}
}

// requests reserves an instance for every request and prepares its enrolment.
func (s *imprintServer) requests(t testing.TB, prefix string, csrs []csr) []prepared {
	t.Helper()
	var reserved []reservation
	s.tell(t, &reserved, fmt.Sprintf("reserve %s %d", prefix, len(csrs)))
	list := make([]prepared, len(csrs))
	for i, c := range csrs {
		basic := base64.StdEncoding.EncodeToString([]byte(string(reserved[i].ID) + ":" + reserved[i].Token))
		list[i] = prepared{
			url: s.URL + "/.well-known/est/simpleenroll", body: []byte(base64.StdEncoding.EncodeToString(c.der)),
			header: http.Header{"Content-Type": {"application/pkcs10"}, "Authorization": {"Basic " + basic}},
		}
	}
	return list
}
