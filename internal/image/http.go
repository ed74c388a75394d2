package image

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"syscall"
	"time"

	"imprint"
)

// Limits on a server of images.
const (
	maxRedirects = 5
	maxFailures  = 5                // in a row, without a byte more
	maxHeader    = 64 << 10         // bytes
	dialTime     = 30 * time.Second // also for TLS
	answerTime   = time.Minute      // until the header
	stallTime    = time.Minute      // without a byte
	firstPause   = time.Second      // after a failure; doubled each time
)

// client asks the server of one image.
type client struct {
	http  *http.Client
	user  string
	pass  imprint.Secret
	basic bool
	pause time.Duration
}

// client returns one that trusts the image's authorities, or the system's.
func (st *Store) client(m imprint.Image, credentials imprint.Secret) (*client, error) {
	t := &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		DialContext:            (&net.Dialer{Timeout: dialTime, Control: notLinkLocal}).DialContext,
		TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout:    dialTime,
		ResponseHeaderTimeout:  answerTime,
		MaxResponseHeaderBytes: maxHeader,
		DisableCompression:     true, // what has a sum is what is in the file
		ForceAttemptHTTP2:      true,
	}
	if m.CA != "" {
		t.TLSClientConfig.RootCAs = x509.NewCertPool()
		if !t.TLSClientConfig.RootCAs.AppendCertsFromPEM([]byte(m.CA)) {
			return nil, imprint.Errorf(imprint.Invalid, "open", "image", "its CA is no certificate in PEM form")
		}
	}
	c := &client{http: &http.Client{Transport: t, CheckRedirect: redirect}, pause: firstPause}
	if st.pause != 0 {
		c.pause = st.pause
	}
	if !credentials.IsZero() {
		user, pass, ok := strings.Cut(string(credentials.Reveal()), ":")
		if !ok {
			return nil, imprint.Errorf(imprint.Invalid, "open", "image", "its credentials are not of the form user:password")
		}
		c.user, c.pass, c.basic = user, imprint.NewSecret([]byte(pass)), true
	}
	return c, nil
}

func (c *client) close() { c.http.CloseIdleConnections() }

// policy is why imprint does not ask a server that it was led to.
type policy string

func (p policy) Error() string { return string(p) }

// notLinkLocal keeps images from coming from where only metadata services are, which
// tell whoever asks from this machine its secrets.
func notLinkLocal(_, address string, _ syscall.RawConn) error {
	if a, err := netip.ParseAddrPort(address); err == nil && a.Addr().Unmap().IsLinkLocalUnicast() {
		return policy("no image is fetched from a link-local address")
	}
	return nil
}

// redirect is the policy: a few, to the web only, and never from TLS to none. The
// credentials are for the server that was named.
func redirect(req *http.Request, via []*http.Request) error {
	switch from := via[len(via)-1].URL; {
	case len(via) > maxRedirects:
		return policy(fmt.Sprintf("it was redirected more than %d times", maxRedirects))
	case req.URL.Scheme != "http" && req.URL.Scheme != "https":
		return policy(fmt.Sprintf("it was redirected to a URL of the scheme %.16q", req.URL.Scheme))
	case from.Scheme == "https" && req.URL.Scheme == "http":
		return policy("it was redirected from https to plain http")
	}
	if req.URL.Scheme != via[0].URL.Scheme || req.URL.Host != via[0].URL.Host {
		req.Header.Del("Authorization")
	}
	req.Header.Del("Referer")
	return nil
}

// get asks for a file, from an offset on, if it still is the version that is known. The
// error is one of [answerError] or [reachError].
func (c *client) get(ctx context.Context, u *url.URL, from int64, v version) (*http.Response, error) {
	plain := *u
	plain.User, plain.Fragment = nil, ""
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, plain.String(), nil)
	if err != nil {
		return nil, imprint.Errorf(imprint.Invalid, "fetch", shown(u), "it cannot be asked for")
	}
	req.Header.Set("User-Agent", "imprint")
	req.Header.Set("Accept-Encoding", "identity")
	if from > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", from))
		req.Header.Set("If-Range", v.validator())
	}
	switch pass, has := u.User.Password(); {
	case c.basic:
		req.SetBasicAuth(c.user, string(c.pass.Reveal()))
	case u.User != nil && has:
		req.SetBasicAuth(u.User.Username(), pass)
	}
	if req.Header.Get("Authorization") != "" && u.Scheme != "https" {
		return nil, imprint.Errorf(imprint.Invalid, "fetch", shown(u), "a password would be sent over plain http").WithHint("use https")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, reachError(u, err)
	}
	if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusPartialContent && resp.StatusCode != http.StatusRequestedRangeNotSatisfiable {
		resp.Body.Close()
		return nil, answerError(u, resp.StatusCode)
	}
	if e := resp.Header.Get("Content-Encoding"); e != "" && e != "identity" {
		resp.Body.Close()
		return nil, imprint.Errorf(imprint.Invalid, "fetch", shown(u), "the server sends it with the encoding %.32q, which was not asked for", e)
	}
	return resp, nil
}

// reachError says why there was no answer. Errors of package url have the whole URL.
func reachError(u *url.URL, err error) error {
	if errors.Is(err, context.Canceled) {
		return context.Canceled
	}
	var in *url.Error
	if errors.As(err, &in) {
		err = in.Err
	}
	e := imprint.Errorf(imprint.Unavailable, "fetch", shown(u), "%w", err)
	var unknown x509.UnknownAuthorityError
	var p policy
	switch {
	case errors.As(err, &unknown):
		e.Kind = imprint.Denied
		return e.WithHint("if the server has an authority of its own, give that certificate as image.ca")
	case errors.As(err, &p):
		e.Kind = imprint.Denied
	}
	return e
}

// answerError says what an answer other than the file means.
func answerError(u *url.URL, status int) error {
	kind, why, hint := imprint.Unavailable, "the server cannot answer now", "try again later"
	switch {
	case status == http.StatusNotFound, status == http.StatusGone:
		kind, why, hint = imprint.NotFound, "the server has no such file", "look at the URL; publishers remove old versions"
	case status == http.StatusUnauthorized:
		kind, why, hint = imprint.Denied, "the server wants a user name and a password, or others", "name the parameter that holds user:password as image.credentials"
	case status == http.StatusForbidden:
		kind, why, hint = imprint.Denied, "the server does not give it to us", ""
	case status >= 400 && status < 500 && status != http.StatusTooManyRequests && status != http.StatusRequestTimeout:
		kind, why, hint = imprint.Invalid, "the server refuses the request", ""
	case status < 400:
		kind, why, hint = imprint.Invalid, "the server answers with something that is no file", ""
	}
	e := imprint.Errorf(kind, "fetch", shown(u), "%s (status %d)", why, status)
	if hint != "" {
		e = e.WithHint("%s", hint)
	}
	return e
}

// patient calls try until it succeeds, fails for good, or failed too often without
// having come further.
func (c *client) patient(ctx context.Context, try func() (further bool, err error)) error {
	for failures := 0; ; {
		further, err := try()
		if err == nil || imprint.KindOf(err) != imprint.Unavailable {
			return err
		}
		if failures++; further {
			failures = 1
		}
		if failures >= maxFailures {
			return err
		}
		select {
		case <-time.After(c.pause << (failures - 1)):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// small fetches a list of sums or a signature.
func (c *client) small(ctx context.Context, u *url.URL) (b []byte, err error) {
	err = c.patient(ctx, func() (bool, error) {
		ctx, cancel := context.WithTimeout(ctx, answerTime+stallTime)
		defer cancel()
		resp, err := c.get(ctx, u, 0, version{})
		if err != nil {
			return false, err
		}
		defer resp.Body.Close()
		if b, err = io.ReadAll(io.LimitReader(resp.Body, maxSums+1)); err != nil {
			return false, reachError(u, err)
		}
		if len(b) > maxSums {
			return false, imprint.Errorf(imprint.Invalid, "fetch", shown(u), "it has more than %s, which no list of sums and no signature has", Bytes(maxSums))
		}
		return true, nil
	})
	return b, err
}

// watched reads a body, and ends the request if no byte comes for too long.
type watched struct {
	io.Reader
	timer *time.Timer
}

func watch(body io.Reader, cancel context.CancelCauseFunc) *watched {
	return &watched{body, time.AfterFunc(stallTime, func() { cancel(fmt.Errorf("no byte came for %s", stallTime)) })}
}

func (w *watched) Read(b []byte) (int, error) {
	n, err := w.Reader.Read(b)
	w.timer.Reset(stallTime)
	return n, err
}
