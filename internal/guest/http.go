package guest

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/textproto"
	"net/url"
	"strconv"
	"strings"
	"time"

	"imprint"
)

// Limits on an HTTP response.
const (
	maxHTTPHead = 16 << 10  // bytes of status line and header
	maxHTTPBody = 256 << 10 // bytes
	httpTimeout = 30 * time.Second
)

// httpClient is the little of HTTP that EST needs, over TLS, and the host's
// link-local network, without; one connection a request. It speaks HTTP/1.0 (RFC 1945), to which a server must not answer in
// chunks; net/http would be a sixth of the agent. It follows no redirection and
// uses no proxy: mutual TLS ends at the check-in endpoint or nowhere.
type httpClient struct {
	tls  *tls.Config // nil is no TLS
	dial func(ctx context.Context, network, address string) (net.Conn, error)
}

type httpRequest struct {
	method, url    string
	contentType    string
	user, password string // Basic authentication, if user is not ""
	body           []byte
}

type httpResponse struct {
	status int
	header textproto.MIMEHeader
	body   []byte
}

// do sends r and reads the response. What keeps it from getting one is of kind
// [imprint.Unavailable]; a URL that cannot be used is [imprint.Invalid].
func (c *httpClient) do(ctx context.Context, r httpRequest) (*httpResponse, error) {
	scheme, port := "https", "443"
	if c.tls == nil {
		scheme, port = "http", "80"
	}
	u, err := url.Parse(r.url)
	if err != nil || u.Scheme != scheme || u.Hostname() == "" {
		return nil, imprint.Errorf(imprint.Invalid, "ask", r.url, "not an %s URL", scheme)
	}
	if u.Port() != "" {
		port = u.Port()
	}
	ctx, cancel := context.WithTimeout(ctx, httpTimeout)
	defer cancel()
	unavailable := func(err error) error {
		return imprint.Errorf(imprint.Unavailable, "ask", u.Host, "%w", errors.Join(err, context.Cause(ctx)))
	}

	raw, err := c.dial(ctx, "tcp", net.JoinHostPort(u.Hostname(), port))
	if err != nil {
		return nil, unavailable(err)
	}
	defer raw.Close()
	stop := context.AfterFunc(ctx, func() { raw.Close() })
	defer stop()
	conn := raw
	if c.tls != nil {
		config := c.tls.Clone()
		config.ServerName = u.Hostname()
		secure := tls.Client(raw, config)
		defer secure.Close()
		if err := secure.HandshakeContext(ctx); err != nil {
			return nil, unavailable(err)
		}
		conn = secure
	}
	if _, err := conn.Write(r.encode(u)); err != nil {
		return nil, unavailable(err)
	}
	resp, err := readResponse(conn)
	if err != nil {
		return nil, unavailable(err)
	}
	return resp, nil
}

func (r httpRequest) encode(u *url.URL) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s %s HTTP/1.0\r\nHost: %s\r\nUser-Agent: imprint-agent\r\n", r.method, u.RequestURI(), u.Host)
	if r.user != "" {
		credentials := base64.StdEncoding.EncodeToString([]byte(r.user + ":" + r.password))
		fmt.Fprintf(&b, "Authorization: Basic %s\r\n", credentials)
	}
	if r.contentType != "" {
		fmt.Fprintf(&b, "Content-Type: %s\r\n", r.contentType)
	}
	if r.method != "GET" {
		fmt.Fprintf(&b, "Content-Length: %d\r\n", len(r.body))
	}
	b.WriteString("\r\n")
	b.Write(r.body)
	return b.Bytes()
}

// readResponse reads one response to its end: as many bytes as Content-Length
// says, or until the peer closes.
func readResponse(from io.Reader) (*httpResponse, error) {
	head := &io.LimitedReader{R: from, N: maxHTTPHead}
	buffered := bufio.NewReader(head)
	text := textproto.NewReader(buffered)
	line, err := text.ReadLine()
	if err != nil {
		return nil, err
	}
	version, rest, _ := strings.Cut(line, " ")
	code, _, _ := strings.Cut(rest, " ")
	status, err := strconv.Atoi(code)
	if err != nil || !strings.HasPrefix(version, "HTTP/1.") || status < 200 || status > 599 {
		return nil, fmt.Errorf("not an HTTP response: %q", oneLine(line))
	}
	header, err := text.ReadMIMEHeader()
	if err != nil {
		return nil, err
	}
	if header.Get("Transfer-Encoding") != "" {
		return nil, errors.New("a chunked response to an HTTP/1.0 request")
	}
	head.N = maxHTTPBody + 1 // the head is read; what follows has its own limit
	var body []byte
	if length := header.Get("Content-Length"); length != "" {
		n, err := strconv.ParseUint(length, 10, 31)
		if err != nil || n > maxHTTPBody {
			return nil, fmt.Errorf("a body of %q bytes; the limit is %d", oneLine(length), maxHTTPBody)
		}
		body = make([]byte, n)
		_, err = io.ReadFull(buffered, body)
		if err != nil {
			return nil, err
		}
		return &httpResponse{status, header, body}, nil
	}
	body, err = io.ReadAll(io.LimitReader(buffered, maxHTTPBody+1))
	if err != nil {
		return nil, err
	}
	if len(body) > maxHTTPBody {
		return nil, fmt.Errorf("a body of more than %d bytes", maxHTTPBody)
	}
	return &httpResponse{status, header, body}, nil
}
