//go:build bench

package bench

import (
	"bufio"
	"bytes"
	"context"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/pprof"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/klog/v2"

	"imprint"
	"imprint/api"
	"imprint/internal/daemon"
	"imprint/internal/image/reader"
)

// In the environment these make this test program a server of imprint on that
// directory and address instead, so that server and load are two processes as
// with the peer.
const (
	serverDir     = "IMPRINT_BENCH_SERVER"
	serverAddress = "IMPRINT_BENCH_ADDRESS"
)

func TestMain(m *testing.M) {
	if reader.IsMain(os.Args[1:]) { // a sandbox
		os.Exit(reader.Main(os.Args[1:]))
	}
	if dir := os.Getenv(serverDir); dir != "" {
		if err := serve(dir, os.Getenv(serverAddress), os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	if role := os.Getenv(metadataRole); role != "" {
		if err := serveMetadata(role, os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// site is where a server's parts are, in its directory.
type site struct {
	config daemon.Config
	socket string
}

func siteIn(dir, address string) site {
	c := daemon.DefaultConfig()
	c.Name, c.Data, c.Run, c.Operator = "localhost", filepath.Join(dir, "data"), filepath.Join(dir, "run"), ""
	const unlimited = 1e6 // one address is the whole site here
	c.CheckIn = daemon.CheckInConfig{Listen: address, PerAddress: unlimited, Total: unlimited}
	return site{c, filepath.Join(c.Run, "imprint.sock")}
}

// serve is the server process: what imprint serve runs, with its own etcd,
// authority and log in dir. It says {} when it is ready and obeys lines on in
// until that ends:
//
//	profile FILE   starts a CPU profile, or stops it if FILE is missing; answers {}
func serve(dir, address string, in io.Reader, out io.Writer) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	settings, err := siteIn(dir, address).config.Check()
	if err != nil {
		return err
	}
	logger := slog.New(slog.NewJSONHandler(os.Stderr, nil))
	klog.SetSlogLogger(daemon.Chatter(logger))
	answer := json.NewEncoder(out)
	d, err := daemon.Open(ctx, settings, daemon.Options{Logger: logger, Serving: func() { answer.Encode(struct{}{}) }})
	if err != nil {
		return err
	}
	served := make(chan error, 1)
	go func() { served <- d.Run(ctx) }()
	for lines := bufio.NewScanner(in); lines.Scan(); {
		if err := profile(strings.Fields(lines.Text())[1:]); err != nil {
			return err
		}
		if err := answer.Encode(struct{}{}); err != nil {
			return err
		}
	}
	cancel()
	return <-served
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
	address string
	url     string
	api     *api.Client
	roots   *x509.CertPool
	in      io.Writer
	out     *json.Decoder

	process *os.Process
}

// startImprint runs a server process until the test ends.
func startImprint(t testing.TB) *imprintServer {
	t.Helper()
	dir, address := t.TempDir(), freeAddress(t)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), serverDir+"="+dir, serverAddress+"="+address)
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
	s := &imprintServer{
		address: address, url: "https://" + address, api: api.NewUnix(siteIn(dir, address).socket), roots: x509.NewCertPool(),
		in: in, out: json.NewDecoder(out), process: cmd.Process,
	}
	t.Cleanup(s.api.Close)
	if err := s.out.Decode(new(any)); err != nil {
		t.Fatal(err)
	}
	bundle, err := s.api.Bundle(t.Context(), imprint.DefaultTenant)
	if err != nil {
		t.Fatal(err)
	}
	s.roots.AppendCertsFromPEM(bundle)
	return s
}

// profile starts a CPU profile of the server, or stops it if file is "".
func (s *imprintServer) profile(t testing.TB, file string) {
	t.Helper()
	if _, err := io.WriteString(s.in, "profile "+file+"\n"); err != nil {
		t.Fatal(err)
	}
	if err := s.out.Decode(new(any)); err != nil {
		t.Fatal(err)
	}
}

// requests reserves an instance for every request and prepares its enrolment.
func (s *imprintServer) requests(t testing.TB, csrs []csr) []prepared {
	t.Helper()
	list, errs := make([]prepared, len(csrs)), make([]error, len(csrs))
	slots := make(chan struct{}, *clients)
	var group sync.WaitGroup
	for i, c := range csrs {
		slots <- struct{}{}
		group.Go(func() {
			defer func() { <-slots }()
			list[i], errs[i] = s.reserve(t.Context(), c)
		})
	}
	group.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	return list
}

// reserve makes an instance on a host that this server does not serve: its
// payload travels by hand, with a token.
func (s *imprintServer) reserve(ctx context.Context, c csr) (prepared, error) {
	label, _, _ := strings.Cut(c.name, ".")
	created, err := s.api.Create(ctx, imprint.Spec{
		Name: imprint.InstanceName(label), DNSNames: []string{c.name}, Host: "elsewhere.internal", Channels: []imprint.ChannelKind{imprint.File},
	}, nil, false)
	if err != nil {
		return nil, err
	}
	token, err := s.api.Token(ctx, string(created.Instance.ID), imprint.Duration(time.Hour))
	if err != nil {
		return nil, err
	}
	basic := base64.StdEncoding.EncodeToString([]byte(string(created.Instance.ID) + ":" + string(token.Reveal())))
	return prepare("POST", s.url+"/.well-known/est/simpleenroll",
		http.Header{"Content-Type": {"application/pkcs10"}, "Authorization": {"Basic " + basic}},
		[]byte(base64.StdEncoding.EncodeToString(c.der)))
}
