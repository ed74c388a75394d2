package guest

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"net"
	"net/url"
	"strconv"
	"strings"
	"time"

	"imprint"
)

// Bounds on the pause that a Retry-After may ask for.
const (
	retryDefault = 30 * time.Second
	retryLeast   = time.Second
	retryMost    = 10 * time.Minute
)

// Paths below a check-in URL.
const (
	pathEST     = "/.well-known/est/"
	pathCheckIn = "/.well-known/imprint/v1/"
)

// estLink talks to the check-in endpoint: RFC 7030 for certificates, and
// imprint's own paths, over TLS with the enrolled certificate, for the rest.
type estLink struct {
	payload *imprint.Payload
	roots   *x509.CertPool // of the payload's CA; nothing else is trusted
	now     func() time.Time
	dial    func(ctx context.Context, network, address string) (net.Conn, error)
	random  func() float64
	console *Console
	sleep   sleeper
}

// Close does nothing: every request has its own connection.
func (l *estLink) Close() error { return nil }

func (l *estLink) Enrol(ctx context.Context, req request, current *credential) ([]*x509.Certificate, error) {
	ask := httpRequest{
		method: "POST", url: pathEST + "simpleenroll", contentType: "application/pkcs10",
		body: []byte(base64.StdEncoding.EncodeToString(req.csr)),
	}
	if current != nil {
		ask.url = pathEST + "simplereenroll"
	} else {
		if l.payload.Token == "" {
			return nil, imprint.Errorf(imprint.Denied, "enrol", string(l.payload.Name), "the payload has no one-time token").
				WithHint("make a payload with a token: imprint describe %s says how this machine may enrol", l.payload.Name)
		}
		ask.user, ask.password = string(l.payload.Instance), l.payload.Token
	}
	for {
		resp, err := l.do(ctx, ask, current)
		if err != nil {
			return nil, err
		}
		if resp.status == 200 {
			return l.chain(ctx, resp.body, current)
		}
		if resp.status != 202 {
			return nil, l.refusal("enrol", string(l.payload.Name), resp)
		}
		pause := retryAfter(resp.header.Get("Retry-After"), l.random())
		l.console.About("enrolment", "waiting for an operator to approve %s", l.payload.Name)
		if err := l.sleep(ctx, pause); err != nil {
			return nil, err
		}
	}
}

// chain completes the leaf in an enrolment reply with the issuing certificates
// from cacerts; the reply itself has the leaf alone.
func (l *estLink) chain(ctx context.Context, reply []byte, current *credential) ([]*x509.Certificate, error) {
	chain, err := parseCertsOnly(reply)
	if err != nil {
		return nil, err
	}
	resp, err := l.do(ctx, httpRequest{method: "GET", url: pathEST + "cacerts"}, current)
	if err != nil {
		return nil, err
	}
	if resp.status != 200 {
		return nil, l.refusal("read", "cacerts", resp)
	}
	cas, err := parseCertsOnly(resp.body)
	if err != nil {
		return nil, err
	}
	chain = chain[:1]
	for _, ca := range cas {
		if !bytes.Equal(ca.RawSubject, ca.RawIssuer) { // a root belongs in ca.pem
			chain = append(chain, ca)
		}
	}
	return chain, nil
}

// retryAfter reads a Retry-After in seconds (RFC 9110 section 10.2.3; its date
// form gets the default pause), within bounds, lengthened by up to a fifth so
// that machines which were started together do not ask together.
func retryAfter(value string, random float64) time.Duration {
	pause := retryDefault
	if seconds, err := strconv.ParseUint(value, 10, 31); err == nil {
		pause = time.Duration(seconds) * time.Second
	}
	pause = min(max(pause, retryLeast), retryMost)
	return pause + time.Duration(random*float64(pause)/5)
}

// Confirm needs no signature: completing TLS with the certificate is the proof.
func (l *estLink) Confirm(ctx context.Context, cred *credential) error {
	return l.post(ctx, "confirm", cred)
}

func (l *estLink) Ready(ctx context.Context, cred *credential) error {
	return l.post(ctx, "ready", cred)
}

// Medium says what became of the medium that the payload was on: kind
// [imprint.NotFound] if it is on no record.
func (l *estLink) Medium(ctx context.Context, cred *credential, end imprint.MediumEnd) error {
	body, err := json.Marshal(end)
	if err != nil {
		return imprint.Errorf(imprint.Internal, "encode", "end of a medium", "%w", err)
	}
	return l.send(ctx, httpRequest{method: "POST", url: pathCheckIn + "medium", contentType: "application/json", body: body}, "report", cred)
}

// SSHCertificate posts the key: that the connection is the machine's says whose it is.
func (l *estLink) SSHCertificate(ctx context.Context, cred *credential, key string) ([]byte, error) {
	resp, err := l.do(ctx, httpRequest{
		method: "POST", url: pathCheckIn + "ssh-certificate", contentType: "text/plain", body: []byte(key + "\n"),
	}, cred)
	if err != nil {
		return nil, err
	}
	if resp.status != 200 {
		return nil, l.refusal("certify", "SSH host key", resp)
	}
	return resp.body, nil
}

func (l *estLink) post(ctx context.Context, name string, cred *credential) error {
	return l.send(ctx, httpRequest{method: "POST", url: pathCheckIn + name}, name, cred)
}

// send sends what is answered with nothing but a status. op names it in errors.
func (l *estLink) send(ctx context.Context, r httpRequest, op string, cred *credential) error {
	resp, err := l.do(ctx, r, cred)
	if err != nil {
		return err
	}
	if resp.status/100 != 2 {
		return l.refusal(op, string(l.payload.Name), resp)
	}
	return nil
}

func (l *estLink) Params(ctx context.Context, cred *credential) ([]Param, error) {
	resp, err := l.do(ctx, httpRequest{method: "GET", url: pathCheckIn + "params"}, cred)
	if err != nil {
		return nil, err
	}
	if resp.status != 200 {
		return nil, l.refusal("read", "parameter list", resp)
	}
	return parseParams(resp.body)
}

func (l *estLink) Param(ctx context.Context, cred *credential, p Param) (imprint.Secret, error) {
	resp, err := l.do(ctx, httpRequest{method: "GET", url: pathCheckIn + "params/" + url.PathEscape(p.Name)}, cred)
	if err != nil {
		return imprint.Secret{}, err
	}
	if resp.status != 200 {
		return imprint.Secret{}, l.refusal("read parameter", p.Name, resp)
	}
	return imprint.NewSecret(resp.body), nil
}

func (l *estLink) UserData(ctx context.Context, cred *credential) (imprint.Secret, error) {
	resp, err := l.do(ctx, httpRequest{method: "GET", url: pathCheckIn + "user-data"}, cred)
	if err != nil {
		return imprint.Secret{}, err
	}
	if resp.status != 200 {
		return imprint.Secret{}, l.refusal("read", "user data", resp)
	}
	return imprint.NewSecret(resp.body), nil
}

// do sends r, whose URL is a path, to the first check-in URL that answers, with
// the certificate of cred if that is not nil.
func (l *estLink) do(ctx context.Context, r httpRequest, cred *credential) (*httpResponse, error) {
	config := &tls.Config{RootCAs: l.roots, Time: l.now, MinVersion: tls.VersionTLS12}
	if cred != nil {
		certificate := tls.Certificate{PrivateKey: cred.key, Leaf: cred.leaf()}
		for _, c := range cred.chain {
			certificate.Certificate = append(certificate.Certificate, c.Raw)
		}
		// Sent whatever the server's list of acceptable CAs says: that list may
		// name the root while the chain ends below it.
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &certificate, nil }
	}
	client := httpClient{tls: config, dial: l.dial}
	err := error(imprint.Errorf(imprint.Invalid, "ask", "check-in endpoint", "the payload names none"))
	for _, base := range l.payload.CheckIn {
		to := r
		to.url = strings.TrimSuffix(base, "/") + r.url
		var resp *httpResponse
		if resp, err = client.do(ctx, to); err == nil {
			return resp, nil
		}
		l.console.About(base, "%v", err)
	}
	return nil, err
}

// refusal turns a status that is no success into an error, with the first line
// of what the server says about it.
func (l *estLink) refusal(op, operand string, resp *httpResponse) error {
	kind, hint := imprint.Unavailable, ""
	switch resp.status {
	case 400, 413, 415, 422:
		kind = imprint.Denied
	case 401:
		kind = imprint.Unauthorized
		hint = "the token may be spent, expired or of another generation, or the enrolment may be over: the operator sees which, and can attach a fresh payload"
	case 403:
		kind = imprint.Denied
	case 404:
		kind = imprint.NotFound
	case 409:
		kind = imprint.Conflict // what the endpoint says tells why
	}
	text := oneLine(string(resp.body))
	if strings.Contains(resp.header.Get("Content-Type"), "html") {
		text = "" // not from imprint
	}
	err := imprint.Errorf(kind, op, operand, "the check-in endpoint answered %d %s", resp.status, text)
	if hint != "" {
		err = err.WithHint("%s", hint)
	}
	return err
}
