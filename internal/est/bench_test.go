package est_test

import (
	"context"
	"crypto/tls"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"imprint"
	"imprint/internal/est"
)

// ready is an engine that has decided already, so that what remains to measure
// is this package.
type ready struct {
	est.Engine
	inst *imprint.Instance
}

func (r ready) Enrol(context.Context, imprint.Submission) (*imprint.Instance, error) {
	return r.inst, nil
}

// BenchmarkSimpleEnroll is one enrolment from the parsed HTTP request to the
// written reply. "decided" is this package alone; "signed" adds one signature
// check and one certificate by crypto/x509, as the authority of these tests
// makes it.
func BenchmarkSimpleEnroll(b *testing.B) {
	s := newSite(b, "default")
	e := serve(b, s, nil)
	inst, _ := e.enrol(b, "default", "web-1", nil)
	decided := s.get(inst.ID)
	csr := request(b, newKey(b))

	run := func(b *testing.B, engine est.Engine, prepare func() (user, token string)) {
		cfg := s.config(b, io.Discard)
		cfg.Engine = engine
		server, err := est.New(cfg)
		if err != nil {
			b.Fatal(err)
		}
		b.ReportAllocs()
		for b.Loop() {
			b.StopTimer()
			user, token := prepare()
			r := httptest.NewRequest("POST", url("default", enrolPath), strings.NewReader(csr))
			r.TLS = &tls.ConnectionState{ServerName: names("default")[0]}
			r.Header.Set("Content-Type", "application/pkcs10")
			r.SetBasicAuth(user, token)
			w := httptest.NewRecorder()
			b.StartTimer()
			if server.ServeHTTP(w, r); w.Code != http.StatusOK {
				b.Fatalf("status %d: %s", w.Code, w.Body)
			}
		}
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "enrolments/s")
	}
	b.Run("decided", func(b *testing.B) {
		run(b, ready{s, &decided}, func() (string, string) { return string(decided.ID), "token" })
	})
	b.Run("signed", func(b *testing.B) {
		run(b, s, func() (string, string) {
			inst, token := s.reserve("default", "web-2", nil)
			return string(inst.ID), token
		})
	})
}
