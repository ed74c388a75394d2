package server

import (
	"io"
	"path/filepath"
	"testing"

	"imprint"
	"imprint/api"
)

// BenchmarkGet is one client that asks for one instance over the unix socket.
func BenchmarkGet(b *testing.B) {
	w := newWorld()
	s, err := New(config(w, io.Discard))
	if err != nil {
		b.Fatal(err)
	}
	l, err := s.ListenUnix(filepath.Join(b.TempDir(), "s"))
	if err != nil {
		b.Fatal(err)
	}
	defer serve(b, s, Listeners{Unix: l})()
	client := api.NewUnix(l.Addr().String())
	defer client.Close()
	i, err := w.Create(b.Context(), "", web("web-1"), map[string]imprint.Secret{}, "bench")
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := client.Get(b.Context(), string(i.ID)); err != nil {
			b.Fatal(err)
		}
	}
}
