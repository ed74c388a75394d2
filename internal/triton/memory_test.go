package triton_test

import (
	"bytes"
	"context"
	"io"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"imprint"
	"imprint/internal/triton"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// memory is a Handler that keeps values in a map.
type memory struct {
	mu     sync.Mutex
	values map[string][]byte
	calls  int
}

func newMemory(pairs ...string) *memory {
	m := &memory{values: map[string][]byte{}}
	for i := 0; i < len(pairs); i += 2 {
		m.values[pairs[i]] = []byte(pairs[i+1])
	}
	return m
}

func (m *memory) Get(_ context.Context, key string) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.calls++
	v, ok := m.values[key]
	if !ok {
		return nil, imprint.Errorf(imprint.NotFound, "get", key, "no such key")
	}
	return v, nil
}

func (m *memory) Put(_ context.Context, key string, value []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.calls++
	m.values[key] = bytes.Clone(value)
	return nil
}

func (m *memory) Delete(_ context.Context, key string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.values[key]; !ok {
		return imprint.Errorf(imprint.NotFound, "delete", key, "no such key")
	}
	delete(m.values, key)
	return nil
}

func (m *memory) Keys(context.Context) ([]string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Sorted(maps.Keys(m.values)), nil
}

// tape is a stream that plays chunks to the server, each after a pause, and
// records what comes back.
type tape struct {
	chunks []chunk
	now    time.Time
	out    bytes.Buffer
}

type chunk struct {
	after time.Duration
	text  string
}

func (t *tape) Read(b []byte) (int, error) {
	if len(t.chunks) == 0 {
		return 0, io.EOF
	}
	t.now = t.now.Add(t.chunks[0].after)
	t.chunks[0].after = 0
	n := copy(b, t.chunks[0].text)
	if t.chunks[0].text = t.chunks[0].text[n:]; t.chunks[0].text == "" {
		t.chunks = t.chunks[1:]
	}
	return n, nil
}

func (t *tape) Write(b []byte) (int, error) { return t.out.Write(b) }
func (t *tape) Close() error                { return nil }

// play returns what the server says to the chunks.
func play(t testing.TB, h triton.Handler, chunks ...chunk) string {
	t.Helper()
	tp := &tape{chunks: chunks, now: time.Unix(1_700_000_000, 0)}
	if err := triton.Serve(t.Context(), tp, h, triton.Options{Now: func() time.Time { return tp.now }}); err != nil {
		t.Errorf("Serve: %v", err)
	}
	return tp.out.String()
}

// frame returns a request or reply as a line.
func frame(t testing.TB, id uint32, code triton.Code, payload string) string {
	t.Helper()
	b, err := triton.AppendFrame(nil, triton.Frame{ID: id, Code: code, Payload: []byte(payload)})
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
