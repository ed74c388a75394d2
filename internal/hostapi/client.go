package hostapi

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"imprint"
)

// requestTime is how long one request but a stream may take.
const requestTime = 10 * time.Second

// ClientConfig is what a [Client] needs.
type ClientConfig struct {
	// URLs are the base URLs of the check-in endpoint, the first that answers counts.
	URLs  []string
	Roots *x509.CertPool
	// Certificate returns the host's present certificate.
	Certificate func() (*tls.Certificate, error)
	// Dial connects; nil dials the URL's host.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// Client is the host's end. Every method fails with kind [imprint.Unavailable]
// if nobody answers properly and [imprint.Unauthorized] if the control plane
// refuses this host; other kinds are what it decided.
type Client struct {
	urls []string
	http http.Client
}

// NewClient returns a client that is not connected.
func NewClient(c ClientConfig) *Client {
	if c.Dial == nil {
		c.Dial = (&net.Dialer{Timeout: requestTime}).DialContext
	}
	transport := &http.Transport{
		DialContext: c.Dial,
		TLSClientConfig: &tls.Config{
			MinVersion: tls.VersionTLS12, RootCAs: c.Roots,
			GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return c.Certificate() },
		},
		TLSHandshakeTimeout: requestTime, ResponseHeaderTimeout: requestTime,
		MaxConnsPerHost: 16, MaxIdleConnsPerHost: 16, IdleConnTimeout: time.Minute,
		MaxResponseHeaderBytes: 16 << 10,
	}
	return &Client{urls: c.URLs, http: http.Client{
		Transport: transport,
		// Mutual TLS ends at the check-in endpoint or nowhere.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// Renewed makes the connections that follow show the new certificate.
func (c *Client) Renewed() { c.http.CloseIdleConnections() }

// Enrol sends a certificate request. As the engine does, it may return an
// instance together with an error.
func (c *Client) Enrol(ctx context.Context, s imprint.Submission) (*imprint.Instance, error) {
	reply, err := c.do(ctx, http.MethodPost, "enrol", enrolment{
		Instance: s.Instance, Generation: s.Generation, Channel: s.Channel, CSR: s.CSR, SSHHost: s.SSHHost,
	})
	if err != nil {
		return nil, err
	}
	var out outcome
	if err := json.Unmarshal(reply, &out); err != nil {
		return nil, imprint.Errorf(imprint.Unavailable, "ask", "control plane", "an answer that is none: %w", err)
	}
	if out.Instance == nil {
		return nil, out.Error.err()
	}
	return out.Instance.Unwrap(), out.Error.err()
}

// Report sends what an instance did.
func (c *Client) Report(ctx context.Context, r imprint.Report) error {
	_, err := c.do(ctx, http.MethodPost, "report", report{
		ID: r.ID, Seen: r.Seen, Instance: r.Instance, Generation: r.Generation, Channel: r.Channel, Kind: r.Kind, Name: r.Name, Data: r.Data, From: r.From, NIC: r.NIC,
	})
	return err
}

// Param fetches a private value.
func (c *Client) Param(ctx context.Context, id imprint.InstanceID, name string) (imprint.Secret, error) {
	b, err := c.do(ctx, http.MethodGet, "params/"+url.PathEscape(string(id))+"/"+url.PathEscape(name), nil)
	return imprint.NewSecret(b), err
}

// Answer answers a call.
func (c *Client) Answer(ctx context.Context, id string, a Answer) error {
	_, err := c.do(ctx, http.MethodPost, "answers/"+url.PathEscape(id), a)
	return err
}

// Watch opens the stream at a position, which another run of the server takes for
// the zero one, and calls each for every notice until the stream ends, which is
// always an error. each is called with a zero Notice first, when the control
// plane has answered.
func (c *Client) Watch(ctx context.Context, from Position, each func(Notice) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	resp, err := c.send(ctx, http.MethodGet, "watch?from="+strconv.FormatInt(from.Revision, 10)+"&run="+url.QueryEscape(from.Run), nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	quiet := time.AfterFunc(silence, cancel)
	defer quiet.Stop()
	lines := bufio.NewReaderSize(resp.Body, 64<<10)
	for first := true; ; {
		line, err := readLine(lines)
		if err != nil {
			return imprint.Errorf(imprint.Unavailable, "watch", "control plane", "the stream broke: %w", err)
		}
		quiet.Reset(silence)
		var n Notice
		if len(line) > 0 {
			if err := json.Unmarshal(line, &n); err != nil {
				return imprint.Errorf(imprint.Unavailable, "watch", "control plane", "a line that is none: %w", err)
			}
		} else if !first {
			continue
		}
		first = false
		if n.Error != nil {
			return n.Error.err()
		}
		quiet.Stop() // what each does may take its time
		err = each(n)
		quiet.Reset(silence)
		if err != nil {
			return err
		}
	}
}

// readLine returns one line without its end.
func readLine(r *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		line = append(line, part...)
		switch {
		case len(line) > maxLine:
			return nil, fmt.Errorf("a line of more than %d bytes", maxLine)
		case err == nil:
			return line[:len(line)-1], nil
		case err == io.EOF:
			return nil, io.ErrUnexpectedEOF
		case err != bufio.ErrBufferFull:
			return nil, err
		}
	}
}

// do sends one request and returns the reply's body.
func (c *Client) do(ctx context.Context, method, path string, body any) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTime)
	defer cancel()
	resp, err := c.send(ctx, method, path, body)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxReply+1))
	if err == nil && len(b) > maxReply {
		err = fmt.Errorf("an answer of more than %d bytes", maxReply)
	}
	if err != nil {
		return nil, imprint.Errorf(imprint.Unavailable, "ask", "control plane", "%w", err)
	}
	return b, nil
}

// send sends a request to the first URL that answers. The error of a refusal
// that the host API sent is that refusal; whatever else answers decides nothing.
func (c *Client) send(ctx context.Context, method, path string, body any) (*http.Response, error) {
	var encoded []byte
	if body != nil {
		encoded = encode(body)
	}
	err := error(imprint.Errorf(imprint.Unavailable, "ask", "control plane", "the payload named no check-in endpoint"))
	for _, base := range c.urls {
		var resp *http.Response
		if resp, err = c.sendTo(ctx, method, strings.TrimSuffix(base, "/")+Prefix+path, encoded); err == nil {
			return resp, nil
		}
		if imprint.KindOf(err) != imprint.Unavailable {
			return nil, err
		}
	}
	return nil, err
}

func (c *Client) sendTo(ctx context.Context, method, address string, body []byte) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, address, bytes.NewReader(body))
	if err != nil {
		return nil, imprint.Errorf(imprint.Unavailable, "ask", "control plane", "%w", err)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		var u *url.Error
		if errors.As(err, &u) {
			err = u.Err
		}
		return nil, imprint.Errorf(imprint.Unavailable, "ask", req.URL.Host, "%w", err)
	}
	if resp.StatusCode/100 == 2 {
		return resp, nil
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(io.LimitReader(resp.Body, maxRequest))
	var p problem
	if resp.Header.Get("Content-Type") == problemType && json.Unmarshal(b, &p) == nil && p.Kind != "" {
		return nil, p.err()
	}
	return nil, imprint.Errorf(imprint.Unavailable, "ask", req.URL.Host, "it answered %s and is no host API", resp.Status)
}
