package host_test

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"golang.org/x/time/rate"

	"imprint"
	"imprint/internal/host"
)

// A guest's root can ask for a new thing each time; the host's disk is not its own.
func TestGuestCannotFillTheLog(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id := w.reserve("web-1")
	var log bytes.Buffer
	h, stop := start(t, w, runDir(t), func(c *host.Config) {
		c.Logger = slog.New(slog.NewTextHandler(&log, nil))
		c.Session.Requests, c.Session.Bytes = rate.Inf, rate.Inf
	})
	c := connect(t, h, id, imprint.VirtioSerial)
	for i := range 300 {
		if err := c.Put(t.Context(), fmt.Sprintf("sdc-no:%0200d", i), nil); err != nil && i < 60 {
			t.Fatal(err)
		}
		c.Put(t.Context(), fmt.Sprintf("imprint:no-%d", i), nil) // denied, each for itself
		c.Keys(t.Context())                                      // more than a reply holds
	}
	stop()
	if n := strings.Count(log.String(), "\n"); n > 40 {
		t.Errorf("300 rounds of nonsense made %d lines; the last is %.300s", n, log.String()[strings.LastIndex(strings.TrimSpace(log.String()), "\n")+1:])
	}
}
