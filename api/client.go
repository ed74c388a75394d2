package api

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"imprint"
)

// Limits on what the client accepts.
const (
	maxAnswer   = 64 << 20 // bytes of one JSON answer: a page of large instances
	maxDocument = 64 << 20 // bytes of a bundle, CRL, payload or exported key
	dialTimeout = 5 * time.Second
)

// Client talks to the control API. It is safe for concurrent use. Its errors are
// [*imprint.Error] with the kind, operand and hint that the server gave, or of
// kind [imprint.Unavailable] (or [imprint.Denied] for a socket that the caller
// may not use) when no server answered.
type Client struct {
	http    *http.Client
	base    string // URL without a final slash
	address string // for people
}

// NewUnix returns a client of the server that listens on a unix socket.
func NewUnix(socket string) *Client {
	dialer := &net.Dialer{Timeout: dialTimeout}
	return newClient("http://imprint", socket, &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, "unix", socket)
		},
		MaxIdleConnsPerHost: 16,
	})
}

// NewTLS returns a client of the server at base, an https URL. config holds the
// caller's certificate and the roots to trust. It fails with kind [imprint.Invalid].
func NewTLS(base string, config *tls.Config) (*Client, error) {
	u, err := url.Parse(base)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.RawQuery != "" {
		return nil, imprint.Errorf(imprint.Invalid, "use", base, "it is not an https URL")
	}
	return newClient(strings.TrimSuffix(base, "/"), base, &http.Transport{
		DialContext:         (&net.Dialer{Timeout: dialTimeout}).DialContext,
		TLSClientConfig:     config,
		TLSHandshakeTimeout: dialTimeout,
		MaxIdleConnsPerHost: 16,
		ForceAttemptHTTP2:   true,
	}), nil
}

func newClient(base, address string, t *http.Transport) *Client {
	return &Client{http: &http.Client{Transport: t}, base: base, address: address}
}

// Close drops the kept connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Create reserves an instance. values are those of its private and secret
// parameters; the private ones are sealed and stored together with the
// instance, or neither is. With dryRun everything is checked and nothing done.
// Kinds: Invalid, Exists, NotFound for the tenant.
func (c *Client) Create(ctx context.Context, spec imprint.Spec, values map[string]imprint.Secret, dryRun bool) (*Created, error) {
	return c.CreateAs(ctx, "", spec, values, dryRun)
}

// CreateAs is [Client.Create] for a machine that has an identifier already, which
// becomes the instance's; "" has one drawn. Kind Exists also says that an instance
// has this identifier, or had it.
func (c *Client) CreateAs(ctx context.Context, id imprint.InstanceID, spec imprint.Spec, values map[string]imprint.Secret, dryRun bool) (*Created, error) {
	// The wire form of CreateRequest, with the values in the clear.
	wire := struct {
		ID     imprint.InstanceID `json:"id,omitempty"`
		Spec   imprint.Spec       `json:"spec"`
		Values map[string]string  `json:"values,omitempty"`
		DryRun bool               `json:"dryRun,omitempty"`
	}{id, spec, map[string]string{}, dryRun}
	for name, v := range values {
		wire.Values[name] = base64.StdEncoding.EncodeToString(v.Reveal())
	}
	return call[Created](ctx, c, http.MethodPost, "/instances", nil, wire)
}

// List returns one page of the instances that q selects.
func (c *Client) List(ctx context.Context, q Query) (*Page, error) {
	v := url.Values{}
	set(v, "tenant", string(q.Tenant))
	set(v, "host", string(q.Host))
	set(v, "after", q.After)
	if q.Limit > 0 {
		v.Set("limit", strconv.Itoa(q.Limit))
	}
	return call[Page](ctx, c, http.MethodGet, "/instances", v, nil)
}

// All yields the instances that q selects, page by page, and ends after an error.
func (c *Client) All(ctx context.Context, q Query) iter.Seq2[*Instance, error] {
	return func(yield func(*Instance, error) bool) {
		for {
			page, err := c.List(ctx, q)
			if err != nil {
				yield(nil, err)
				return
			}
			for i := range page.Instances {
				if !yield(&page.Instances[i], nil) {
					return
				}
			}
			if page.Next == "" {
				return
			}
			q.After = page.Next
		}
	}
}

// Get returns the instance that ref names: an ID, a name in the default tenant,
// or tenant/name. Kind: NotFound, as for every method with a ref.
func (c *Client) Get(ctx context.Context, ref string) (*Instance, error) {
	return call[Instance](ctx, c, http.MethodGet, at(ref), nil, nil)
}

// Describe returns the instance with its timeline and what it lacks.
func (c *Client) Describe(ctx context.Context, ref string) (*Description, error) {
	return call[Description](ctx, c, http.MethodGet, at(ref)+"/description", nil, nil)
}

// Timeline returns the kept events after the one numbered after.
func (c *Client) Timeline(ctx context.Context, ref string, after uint64) ([]imprint.Event, error) {
	t, err := call[Timeline](ctx, c, http.MethodGet, at(ref)+"/timeline", url.Values{"after": {strconv.FormatUint(after, 10)}}, nil)
	if err != nil {
		return nil, err
	}
	return t.Events, nil
}

// Delete removes the instance; its revocations stay.
func (c *Client) Delete(ctx context.Context, ref string) error {
	return c.document(ctx, http.MethodDelete, at(ref), nil, nil, "")
}

// PutParam sets the value of a parameter that the spec declares, whatever its
// visibility. Kinds: NotFound, Invalid; Unavailable if the host that keeps
// secret values cannot be reached.
func (c *Client) PutParam(ctx context.Context, ref, name string, value imprint.Secret) error {
	return c.DeclareParam(ctx, ref, name, "", value)
}

// DeclareParam is [Client.PutParam] for a parameter that the spec may not declare
// yet, or declare with another visibility: it has this one afterwards.
func (c *Client) DeclareParam(ctx context.Context, ref, name string, visibility imprint.Visibility, value imprint.Secret) error {
	// The wire form of ParamRequest, with the value in the clear.
	wire := struct {
		Value      string             `json:"value"`
		Visibility imprint.Visibility `json:"visibility,omitempty"`
	}{base64.StdEncoding.EncodeToString(value.Reveal()), visibility}
	return c.document(ctx, http.MethodPut, at(ref)+"/params/"+url.PathEscape(name), wire, nil, "")
}

// DeleteParam removes a parameter and its value. Kinds: NotFound; Conflict if the
// spec needs it.
func (c *Client) DeleteParam(ctx context.Context, ref, name string) error {
	return c.document(ctx, http.MethodDelete, at(ref)+"/params/"+url.PathEscape(name), nil, nil, "")
}

// Approve consents to the claim of the present generation. Kind: Conflict if
// nothing waits for consent.
func (c *Client) Approve(ctx context.Context, ref string) (*Instance, error) {
	return call[Instance](ctx, c, http.MethodPost, at(ref)+"/approve", nil, nil)
}

// Revoke takes the present generation's credentials back.
func (c *Client) Revoke(ctx context.Context, ref, reason string) (*Instance, error) {
	return call[Instance](ctx, c, http.MethodPost, at(ref)+"/revoke", nil, RevokeRequest{reason})
}

// Rebirth starts the next generation. Public and private parameters keep their
// values, and secret ones have to be given again.
func (c *Client) Rebirth(ctx context.Context, ref string) (*Instance, error) {
	out, err := c.RebirthWith(ctx, ref, nil)
	if err != nil {
		return nil, err
	}
	return &out.Instance, nil
}

// RebirthWith is [Client.Rebirth] with new values of parameters. The answer names
// the secret ones that are missing. Kind: Invalid for a value that cannot be, and then
// nothing happened.
func (c *Client) RebirthWith(ctx context.Context, ref string, values map[string]imprint.Secret) (*Created, error) {
	// The wire form of RebirthRequest, with the values in the clear.
	wire := struct {
		Values map[string]string `json:"values,omitempty"`
	}{map[string]string{}}
	for name, v := range values {
		wire.Values[name] = base64.StdEncoding.EncodeToString(v.Reveal())
	}
	return call[Created](ctx, c, http.MethodPost, at(ref)+"/rebirth", nil, wire)
}

// Token hands out the one-time token of the present generation, which replaces
// an earlier one; ttl 0 is the server's default.
func (c *Client) Token(ctx context.Context, ref string, ttl imprint.Duration) (imprint.Secret, error) {
	return c.secret(ctx, at(ref)+"/token", TokenRequest{ttl})
}

// Payload returns the payload with a fresh one-time token in it, to be carried
// to the machine by hand.
func (c *Client) Payload(ctx context.Context, ref string, ttl imprint.Duration) (imprint.Secret, error) {
	return c.secret(ctx, at(ref)+"/payload", TokenRequest{ttl})
}

// Pipes returns what waits in the instance's pipes. Kind: Unavailable if its host
// cannot be reached, as for all methods with a pipe.
func (c *Client) Pipes(ctx context.Context, ref string) ([]Pipe, error) {
	p, err := call[Pipes](ctx, c, http.MethodGet, at(ref)+"/pipes", nil, nil)
	if err != nil {
		return nil, err
	}
	return p.Pipes, nil
}

// WritePipe puts a message of at most [imprint.MaxMessage] bytes on a pipe of the
// instance. A message with the id of the one before is that one, sent again; "" is
// always another. Kinds: NotFound if there is no such pipe, Exhausted while too
// many messages wait.
func (c *Client) WritePipe(ctx context.Context, ref, pipe, id string, message []byte) error {
	v := url.Values{}
	set(v, "id", id)
	resp, err := c.send(ctx, http.MethodPost, Prefix+atPipe(ref, pipe), v, message, "")
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// ReadPipe returns the oldest message that the machine wrote, and its receipt. It
// stays there until [Client.TakePipe]. If there is none it waits for up to so many
// seconds, at most [MaxPipeWait]; the receipt is "" if none came.
func (c *Client) ReadPipe(ctx context.Context, ref, pipe string, seconds int) (message []byte, receipt string, err error) {
	resp, err := c.send(ctx, http.MethodGet, Prefix+atPipe(ref, pipe), url.Values{"wait": {strconv.Itoa(seconds)}}, nil, "application/octet-stream")
	if err != nil {
		return nil, "", err
	}
	defer resp.Body.Close()
	message, err = io.ReadAll(io.LimitReader(resp.Body, imprint.MaxMessage))
	if err != nil {
		return nil, "", c.unavailable(err)
	}
	return message, resp.Header.Get(MessageHeader), nil
}

// TakePipe removes the message that has this receipt. It may be repeated.
func (c *Client) TakePipe(ctx context.Context, ref, pipe, receipt string) error {
	return c.document(ctx, http.MethodDelete, atPipe(ref, pipe)+"/"+url.PathEscape(receipt), nil, nil, "")
}

func atPipe(ref, pipe string) string { return at(ref) + "/pipes/" + url.PathEscape(pipe) }

// Authority describes the CA of a tenant; "" is the default tenant, as for all
// methods with a tenant.
func (c *Client) Authority(ctx context.Context, tenant imprint.TenantName) (*Authority, error) {
	return call[Authority](ctx, c, http.MethodGet, ca(tenant), nil, nil)
}

// Bundle returns the certificates of the tenant's CA as PEM, the root first.
func (c *Client) Bundle(ctx context.Context, tenant imprint.TenantName) ([]byte, error) {
	var buf bytes.Buffer
	err := c.document(ctx, http.MethodGet, ca(tenant)+"/bundle", nil, &buf, "application/x-pem-file")
	return buf.Bytes(), err
}

// CRL returns the tenant's current revocation list in DER.
func (c *Client) CRL(ctx context.Context, tenant imprint.TenantName) ([]byte, error) {
	var buf bytes.Buffer
	err := c.document(ctx, http.MethodGet, ca(tenant)+"/crl", nil, &buf, "application/pkix-crl")
	return buf.Bytes(), err
}

// ExportRoot returns the tenant's root key as PEM. It stays on the server until
// [Client.DropRoot]. Kind: NotFound if it was taken out already.
func (c *Client) ExportRoot(ctx context.Context, tenant imprint.TenantName) (imprint.Secret, error) {
	return c.secret(ctx, ca(tenant)+"/root-key/export", nil)
}

// DropRoot removes the tenant's root key from the server, which then runs on the
// issuing key alone. Kind: NotFound if it was taken out already.
func (c *Client) DropRoot(ctx context.Context, tenant imprint.TenantName) error {
	return c.document(ctx, http.MethodDelete, ca(tenant)+"/root-key", nil, nil, "")
}

// Reissue makes a new issuing CA for the tenant. rootKey is the exported root key,
// or zero while it is still on the server. Kind: Conflict if it is needed.
func (c *Client) Reissue(ctx context.Context, tenant imprint.TenantName, rootKey imprint.Secret) (*Authority, error) {
	// The wire form of ReissueRequest, with the key in the clear.
	wire := struct {
		RootKey string `json:"rootKey,omitempty"`
	}{base64.StdEncoding.EncodeToString(rootKey.Reveal())}
	return call[Authority](ctx, c, http.MethodPost, ca(tenant)+"/reissue", nil, wire)
}

// RotateSealing makes a new key-encryption key, gives it everything that is
// sealed, and forgets the old one. If it fails half way it may be repeated.
func (c *Client) RotateSealing(ctx context.Context) (*Sealing, error) {
	return call[Sealing](ctx, c, http.MethodPost, "/seal/rotate", nil, nil)
}

// Log writes a copy of the issuance log to w as a tar archive, which
// "imprint log verify" checks without the server.
func (c *Client) Log(ctx context.Context, w io.Writer) error {
	return c.document(ctx, http.MethodGet, "/log", nil, w, "application/x-tar")
}

// Info says who answers and as whom the server knows the caller.
func (c *Client) Info(ctx context.Context) (*Info, error) {
	return call[Info](ctx, c, http.MethodGet, "/info", nil, nil)
}

// OpenAPI writes the server's OpenAPI 3.1 document to w.
func (c *Client) OpenAPI(ctx context.Context, w io.Writer) error {
	resp, err := c.send(ctx, http.MethodGet, "/openapi.json", nil, nil, "")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(w, io.LimitReader(resp.Body, maxDocument)); err != nil {
		return c.unavailable(fmt.Errorf("the answer ended early: %w", err))
	}
	return nil
}

// Ready fails with the server's reason while it cannot do its work.
func (c *Client) Ready(ctx context.Context) error {
	resp, err := c.send(ctx, http.MethodGet, "/readyz", nil, nil, "")
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

func at(ref string) string { return "/instances/" + url.PathEscape(ref) }

func ca(tenant imprint.TenantName) string {
	if tenant == "" {
		tenant = imprint.DefaultTenant
	}
	return "/ca/" + url.PathEscape(string(tenant))
}

func set(v url.Values, name, value string) {
	if value != "" {
		v.Set(name, value)
	}
}

// call sends a request and decodes the JSON answer.
func call[T any](ctx context.Context, c *Client, method, path string, query url.Values, body any) (*T, error) {
	resp, err := c.send(ctx, method, Prefix+path, query, body, "application/json")
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	var v T
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(&v); err != nil {
		return nil, c.unavailable(fmt.Errorf("the answer cannot be read: %w", err))
	}
	return &v, nil
}

// secret sends a request whose whole answer is a credential.
func (c *Client) secret(ctx context.Context, path string, body any) (imprint.Secret, error) {
	var buf bytes.Buffer
	if err := c.document(ctx, http.MethodPost, path, body, &buf, "application/octet-stream"); err != nil {
		return imprint.Secret{}, err
	}
	return imprint.NewSecret(buf.Bytes()), nil
}

// document sends a request and copies the answer to w, if w is not nil.
func (c *Client) document(ctx context.Context, method, path string, body any, w io.Writer, accept string) error {
	resp, err := c.send(ctx, method, Prefix+path, nil, body, accept)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if w == nil {
		w = io.Discard
	}
	limit := int64(maxDocument)
	if accept == "application/x-tar" {
		limit = 1 << 62 // the issuance log has no limit but the disk
	}
	if _, err := io.Copy(w, io.LimitReader(resp.Body, limit)); err != nil {
		return c.unavailable(fmt.Errorf("the answer ended early: %w", err))
	}
	return nil
}

// send returns a response with a status below 300; the caller closes its body. A
// body of bytes is sent as it is and anything else as JSON.
func (c *Client) send(ctx context.Context, method, path string, query url.Values, body any, accept string) (*http.Response, error) {
	var reader io.Reader
	kind := "application/json"
	switch b := body.(type) {
	case nil:
	case []byte:
		reader, kind = bytes.NewReader(b), "application/octet-stream"
	default:
		encoded, err := json.Marshal(b)
		if err != nil {
			return nil, imprint.Errorf(imprint.Internal, "encode", "request", "%w", err)
		}
		reader = bytes.NewReader(encoded)
	}
	target := c.base + path
	if len(query) > 0 {
		target += "?" + query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, method, target, reader)
	if err != nil {
		return nil, imprint.Errorf(imprint.Invalid, "call", c.address, "%w", err)
	}
	if reader != nil {
		req.Header.Set("Content-Type", kind)
	}
	if accept != "" {
		req.Header.Set("Accept", accept)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, c.unavailable(err)
	}
	// 202 is how a server says that approval is pending: an error of ours.
	if resp.StatusCode < 300 && resp.StatusCode != http.StatusAccepted {
		return resp, nil
	}
	defer resp.Body.Close()
	var p Problem
	if err := json.NewDecoder(io.LimitReader(resp.Body, MaxBody)).Decode(&p); err != nil || p.Kind == "" {
		return nil, c.unavailable(fmt.Errorf("it answered %s, which is not imprint's way", resp.Status))
	}
	return nil, p.Err()
}

// unavailable explains why the server could not be asked.
func (c *Client) unavailable(err error) *imprint.Error {
	var ue *url.Error
	if errors.As(err, &ue) {
		err = ue.Err // without the URL, which is made up for a unix socket
	}
	var se *os.SyscallError
	if errors.As(err, &se) {
		err = se.Err
	}
	e := imprint.Errorf(imprint.Unavailable, "reach", "server at "+c.address, "%w", err)
	switch {
	case errors.Is(err, os.ErrPermission):
		e.Kind = imprint.Denied
		return e.WithHint("only root and the members of the server's group may use its control socket")
	case errors.Is(err, os.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return e.WithHint("start it with: imprint serve")
	}
	return e
}
