package api

import (
	"bytes"
	"io"
	"net/http"
	"strings"
	"testing"

	"imprint"
)

func notices(body []byte) (got []*Notice, err error) {
	c := NewUnix("test.sock")
	err = c.readNotices(&http.Response{Body: io.NopCloser(bytes.NewReader(body))}, func(n *Notice) bool {
		got = append(got, n)
		return true
	})
	return got, err
}

func TestReadNotices(t *testing.T) {
	t.Parallel()
	got, err := notices([]byte("\n{\"revision\":7,\"deleted\":\"x\"}\n\n{\"revision\":8,\"relist\":true}\n{\"revi"))
	if len(got) != 2 || got[0].Revision != 7 || !got[1].Relist {
		t.Errorf("got %+v", got)
	}
	if imprint.KindOf(err) != imprint.Unavailable {
		t.Errorf("a stream that breaks off in a line: %v", err)
	}
	if _, err := notices([]byte(`{"error":{"kind":"denied","op":"watch","operand":"x","cause":"no"}}` + "\n")); imprint.KindOf(err) != imprint.Denied {
		t.Errorf("an error of the server: %v", err)
	}
	if _, err := notices([]byte("<html>\n")); imprint.KindOf(err) != imprint.Internal {
		t.Errorf("what is no notice: %v", err)
	}
	if _, err := notices([]byte(strings.Repeat("x", maxNotice+1))); err == nil || !strings.Contains(err.Error(), "a line of more than") {
		t.Errorf("a line without an end: %v", err)
	}
}

// FuzzReadNotices: whatever a server sends, reading ends with an error and
// without a panic.
func FuzzReadNotices(f *testing.F) {
	f.Add([]byte("\n{\"revision\":7,\"instance\":{\"spec\":{\"ips\":[\"10.0.0.1\"]}}}\n"))
	f.Add([]byte(`{"error":{"kind":"denied"}}` + "\n"))
	f.Fuzz(func(t *testing.T, body []byte) {
		if _, err := notices(body); err == nil {
			t.Error("the stream ended without an error")
		}
	})
}
