package guest

import (
	"context"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"time"

	"imprint"
)

// metadataAddress is where a host answers on the link-local network.
const metadataAddress = "169.254.169.254"

// Source ports that only root may use, by which the host knows whom it serves.
// Those below are for well-known services.
const (
	firstRootPort = 600
	lastRootPort  = 1023
)

// linkLocalTime is how long one request on the link-local network may take.
const linkLocalTime = 10 * time.Second

// linkLocalSource is the host at the other end of an interface that leads there
// and nowhere else.
type linkLocalSource struct{ layout Layout }

func (s linkLocalSource) String() string { return "http://" + metadataAddress }

func (s linkLocalSource) Try(ctx context.Context) (*finding, error) {
	name, err := linkLocalInterface(s.layout)
	if err != nil {
		return nil, err
	}
	host := &linkLocalHost{httpClient{dial: rootDialer(name)}}
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	payload, err := host.Get(ctx, keyPayload)
	if err != nil {
		return nil, err
	}
	return &finding{source: s.String() + " by " + name, payload: payload, live: host, conn: host}, nil
}

// rootDialer returns a dialer from a port that only root may use, by the
// interface called name.
func rootDialer(name string) func(ctx context.Context, network, address string) (net.Conn, error) {
	return func(ctx context.Context, _, address string) (conn net.Conn, err error) {
		const ports = lastRootPort - firstRootPort + 1
		for n, first := 0, rand.IntN(ports); n < ports; n++ {
			port := uint16(firstRootPort + (first+n)%ports)
			d := net.Dialer{
				LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.IPv4Unspecified(), port)),
				Control:   func(_, _ string, c syscall.RawConn) error { return bindToInterface(c, name) },
			}
			if conn, err = d.DialContext(ctx, "tcp4", address); err == nil || !portInUse(err) {
				return conn, err
			}
		}
		return nil, err
	}
}

// linkLocalHost speaks with the host over HTTP; it implements [metadata].
type linkLocalHost struct{ http httpClient }

func (h *linkLocalHost) Get(ctx context.Context, key string) ([]byte, error) {
	return h.ask(ctx, "GET", key, nil)
}

func (h *linkLocalHost) Put(ctx context.Context, key string, value []byte) error {
	_, err := h.ask(ctx, "PUT", key, value)
	return err
}

// Close does nothing: each request has a connection of its own.
func (h *linkLocalHost) Close() error { return nil }

func (h *linkLocalHost) ask(ctx context.Context, method, key string, value []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, linkLocalTime)
	defer cancel()
	name := strings.TrimPrefix(key, "imprint:")
	resp, err := h.http.do(ctx, httpRequest{method: method, url: "http://" + metadataAddress + "/imprint/v1/" + name, body: value})
	if err != nil {
		return nil, err
	}
	said := oneLine(firstLine(resp.body))
	switch {
	case resp.status/100 == 2:
		return resp.body, nil
	case resp.status == 404:
		return nil, imprint.Errorf(imprint.NotFound, "ask", "the host", "it has no %s", name)
	case resp.status >= 500, resp.status == 429:
		return nil, imprint.Errorf(imprint.Unavailable, "ask", "the host", "%s", said)
	}
	return nil, imprint.Errorf(imprint.Denied, "ask", "the host", "%s", said)
}

func firstLine(b []byte) string {
	line, _, _ := strings.Cut(string(b), "\n")
	return line
}
