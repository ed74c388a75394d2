package hostapi

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"reflect"
	"sync/atomic"
	"testing"
	"time"

	"imprint"
)

// TestEverythingIsCarried: a field that is added to what hosts send arrives, unless
// it is one that the certificate, or nobody, has to say.
func TestEverythingIsCarried(t *testing.T) {
	t.Parallel()
	w := newWorld()
	c := NewClient(ClientConfig{URLs: []string{"https://imprint.example.net"}})
	c.http.Transport = toServer{w.server()}
	var r imprint.Report
	var s imprint.Submission
	fill(t, reflect.ValueOf(&r).Elem())
	fill(t, reflect.ValueOf(&s).Elem())
	r.Kind, r.Channel, s.Channel = imprint.ReportReady, imprint.Serial2, imprint.Serial2
	if err := c.Report(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	c.Enrol(t.Context(), s)
	r.Witness, r.Serial, r.Medium = hv2, "", nil // a machine tells of its medium itself
	s.Witness, s.Tenant, s.Profile, s.Token = hv2, "", "", imprint.Secret{}
	if len(w.said) != 1 || !reflect.DeepEqual(w.said[0], r) {
		t.Errorf("the report\n%+v arrived as\n%+v", r, w.said)
	}
	if len(w.sent) != 1 || !reflect.DeepEqual(w.sent[0], s) {
		t.Errorf("the submission\n%+v arrived as\n%+v", s, w.sent)
	}
}

// fill sets every field of v.
func fill(t *testing.T, v reflect.Value) {
	t.Helper()
	switch value := v.Addr().Interface().(type) {
	case *time.Time:
		*value = time.Unix(1, 0).UTC()
		return
	case *netip.Addr:
		*value = netip.MustParseAddr("169.254.1.1")
		return
	case *imprint.Secret:
		*value = imprint.NewSecret([]byte("x"))
		return
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString("x")
	case reflect.Uint32:
		v.SetUint(1)
	case reflect.Slice:
		v.SetBytes([]byte("x"))
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(t, v.Elem())
	case reflect.Struct:
		for i := range v.NumField() {
			fill(t, v.Field(i))
		}
	default:
		t.Fatalf("a field of type %s is not filled", v.Type())
	}
}

// toServer is a connection with a host's certificate.
type toServer struct{ *Server }

func (s toServer) RoundTrip(r *http.Request) (*http.Response, error) {
	r.TLS = request("GET", "/", "").TLS
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	return w.Result(), nil
}

// FuzzLines gives what a host reads of a stream.
func FuzzLines(f *testing.F) {
	f.Add([]byte("\n{\"revision\":1,\"instance\":{\"id\":\"x\",\"revision\":3}}\n\n{\"error\":{\"kind\":\"denied\"}}\n"))
	f.Add([]byte("{\n"))
	f.Add([]byte("{\"call\":{\"kind\":\"secret\",\"value\":\"AAAA\"}}\n"))
	f.Fuzz(func(t *testing.T, stream []byte) {
		c := NewClient(ClientConfig{URLs: []string{"https://imprint.example.net"}})
		c.http.Transport = replies(stream)
		n := 0
		err := c.Watch(t.Context(), Position{}, func(one Notice) error {
			if n++; one.Instance != nil && one.Instance.Unwrap().Revision != one.Instance.Revision {
				t.Error("an instance without its revision")
			}
			return nil
		})
		if err == nil || n > bytes.Count(stream, []byte("\n")) {
			t.Errorf("%d lines, %v", n, err)
		}
	})
}

// replies is a server that answers everything with this.
type replies []byte

func (b replies) RoundTrip(r *http.Request) (*http.Response, error) {
	w := httptest.NewRecorder()
	w.Write(b)
	resp := w.Result()
	resp.Request = r
	return resp, nil
}

// TestRenewedCertificate: after a renewal new connections show the new certificate.
func TestRenewedCertificate(t *testing.T) {
	t.Parallel()
	shown := make(chan string, 2)
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		shown <- r.TLS.PeerCertificates[0].Subject.CommonName
		w.WriteHeader(http.StatusNoContent)
	}))
	server.TLS = &tls.Config{ClientAuth: tls.RequireAnyClientCert}
	server.StartTLS()
	defer server.Close()
	pool := x509.NewCertPool()
	pool.AddCert(server.Certificate())
	var present atomic.Pointer[tls.Certificate]
	present.Store(selfSigned(t, "first"))
	c := NewClient(ClientConfig{URLs: []string{server.URL}, Roots: pool, Certificate: func() (*tls.Certificate, error) { return present.Load(), nil }})
	for _, want := range []string{"first", "second"} {
		if err := c.Report(t.Context(), imprint.Report{}); err != nil {
			t.Fatal(err)
		}
		if got := <-shown; got != want {
			t.Errorf("shown is the %s certificate, not the %s", got, want)
		}
		present.Store(selfSigned(t, "second"))
		c.Renewed()
	}
}

func selfSigned(t *testing.T, name string) *tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// TestOnlyTheHostAPIDecides: what stands between host and server, a proxy or
// another web server, is an outage and no decision.
func TestOnlyTheHostAPIDecides(t *testing.T) {
	t.Parallel()
	for _, status := range []int{http.StatusMovedPermanently, http.StatusForbidden, http.StatusNotFound, http.StatusTooManyRequests, http.StatusBadGateway} {
		server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Location", "https://elsewhere.example.net")
			w.WriteHeader(status)
			w.Write([]byte(`{"kind":"not found"}`))
		}))
		pool := x509.NewCertPool()
		pool.AddCert(server.Certificate())
		c := NewClient(ClientConfig{URLs: []string{server.URL}, Roots: pool, Certificate: func() (*tls.Certificate, error) { return &tls.Certificate{}, nil }})
		if err := c.Report(t.Context(), imprint.Report{}); imprint.KindOf(err) != imprint.Unavailable || err == nil {
			t.Errorf("%d: %v", status, err)
		}
		c.Renewed()
		server.Close()
	}
}
