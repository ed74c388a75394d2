package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"time"

	"imprint"
	"imprint/api"
)

// What huma refuses of a request names the place and never echoes the value.
func TestMalformedRequests(t *testing.T) {
	t.Parallel()
	r := start(t)
	hc := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", r.socket)
	}}}
	defer hc.CloseIdleConnections()
	for body, want := range map[string]string{
		`{"spec":{"name":"a"},"values":{"db":4711}}`:           "body.values.db: expected string",
		`{"spec":{"name":"a"},"valeus":{"db":"aHVudGVyMg=="}}`: "body.valeus: unexpected property",
		`{"spec":{"name":"a","color":"4711"}}`:                 "body.spec.color: unexpected property",
		`{"spec":{"name":"a"},"values":{"db":"4711!"}}`:        "it is not base64",
		`{`:                                      "unexpected end of JSON",
		`{"spec":{"ips":["nonsense"]}}`:          "body.spec.ips[0]",
		strings.Repeat(" ", api.MaxCreateBody+1): "too large",
		`{"spec":{"name":"a","policy":{"lifetime":"4711 years"}}}`: "",
	} {
		resp, err := hc.Post("http://imprint/v1/instances", "application/json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		var p api.Problem
		if err := json.Unmarshal(b, &p); err != nil || p.Kind == "" || resp.Header.Get("Content-Type") != api.ProblemType || p.Status != resp.StatusCode {
			t.Errorf("%.60s: %s %s is not a problem: %v", body, resp.Status, b, err)
			continue
		}
		if resp.StatusCode < 400 || resp.StatusCode >= 500 || !strings.Contains(p.Detail, want) || want != "" && strings.Contains(string(b), "4711") {
			t.Errorf("%.60s: %s", body, b)
		}
	}
	resp, err := hc.Get("http://imprint/v2/instances")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusNotFound || resp.Header.Get("Content-Type") != api.ProblemType {
		t.Errorf("an unknown path: %s", resp.Status)
	}
}

// Internal errors and panics stay inside: an identifier goes out, the rest is in the log.
func TestInternalErrors(t *testing.T) {
	t.Parallel()
	r := start(t, func(c *Config) { c.Pipes = panicking{} })
	ctx := t.Context()
	must[*api.Created](t)(r.client.Create(ctx, imprint.Spec{Name: "web-1"}, nil, false))
	_, _, panicked := r.client.ReadPipe(ctx, "web-1", imprint.DefaultPipe, 0)
	r.mu.Lock()
	r.fail = errors.New("etcd: disk /dev/sda1 is on fire")
	r.mu.Unlock()
	_, failed := r.client.Get(ctx, "web-1")
	for detail, err := range map[string]error{"index out of reason": panicked, "on fire": failed} {
		if imprint.KindOf(err) != imprint.Internal || strings.Contains(err.Error(), detail) {
			t.Errorf("got %v", err)
			continue
		}
		id := err.Error()[strings.LastIndex(err.Error(), " ")+1:]
		if log := r.log.String(); !strings.Contains(log, id) || !strings.Contains(log, detail) {
			t.Errorf("%q or %q is not in the log %s", id, detail, log)
		}
	}
}

type panicking struct{ Pipes }

func (panicking) ReadPipe(context.Context, imprint.InstanceID, string, time.Duration) ([]byte, string, error) {
	panic("index out of reason")
}

// Every kind arrives at the client as what it was.
func TestKindsSurvive(t *testing.T) {
	t.Parallel()
	r, ctx := start(t), t.Context()
	for k := imprint.Invalid; k <= imprint.Contested; k++ {
		r.mu.Lock()
		r.fail = fmt.Errorf("outer: %w", imprint.Errorf(k, "claim", "web-1", "because").WithHint("do that"))
		r.mu.Unlock()
		_, err := r.client.Get(ctx, string(imprint.NewInstanceID()))
		var e *imprint.Error
		if !errors.As(err, &e) || e.Kind != k || e.Op != "claim" || e.Operand != "web-1" || e.Err.Error() != "because" || e.Hint != "do that" {
			t.Errorf("%v: got %#v", k, err)
		}
	}
}

// No type of an answer can hold a secret.
func TestAnswersHoldNoSecrets(t *testing.T) {
	t.Parallel()
	secret := map[reflect.Type]bool{reflect.TypeFor[imprint.Secret](): true, reflect.TypeFor[api.Value](): true}
	var walk func(path string, typ reflect.Type, seen map[reflect.Type]bool)
	walk = func(path string, typ reflect.Type, seen map[reflect.Type]bool) {
		if secret[typ] {
			t.Errorf("%s can hold a secret", path)
		}
		if seen[typ] {
			return
		}
		seen[typ] = true
		switch typ.Kind() {
		case reflect.Pointer, reflect.Slice, reflect.Map, reflect.Array:
			walk(path, typ.Elem(), seen)
		case reflect.Struct:
			for f := range typ.NumField() {
				name := typ.Field(f).Name
				if strings.Contains(strings.ToLower(name), "tokenhash") {
					t.Errorf("%s.%s is a credential's hash", path, name)
				}
				walk(path+"."+name, typ.Field(f).Type, seen)
			}
		}
	}
	for _, answer := range []any{api.Created{}, api.Page{}, api.Description{}, api.Timeline{}, api.Notice{}, api.Authority{}, api.Info{}, api.Problem{}} {
		walk(reflect.TypeOf(answer).Name(), reflect.TypeOf(answer), map[reflect.Type]bool{})
	}
}

// Requests redact themselves wherever they might be printed.
func TestRequestsRedactThemselves(t *testing.T) {
	t.Parallel()
	req := api.CreateRequest{Values: map[string]api.Value{"a": {Secret: imprint.NewSecret([]byte("canary"))}}}
	b, err := json.Marshal(req)
	if err != nil {
		t.Fatal(err)
	}
	for _, shown := range []string{string(b), fmt.Sprintf("%v %+v %#v", req, req, req)} {
		if strings.Contains(shown, "canary") || strings.Contains(shown, "Y2FuYXJ5") || strings.Contains(shown, "63616e617279") {
			t.Errorf("shown: %s", shown)
		}
	}
}
