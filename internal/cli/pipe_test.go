package cli

import (
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"imprint"
	"imprint/api"
)

// A server that goes away with a message, and comes back, is sent the same message
// again: under the same id, so that it cannot be there twice.
func TestMessageWhoseAnswerIsLost(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "p") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "s")
	listen := func() net.Listener {
		ln, err := net.Listen("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		return ln
	}
	first := listen()
	ids := make(chan string, 2)
	go func() {
		http.Serve(first, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			ids <- r.URL.Query().Get("id")
			first.Close() // and with it the file: for a while nobody is there
			panic(http.ErrAbortHandler)
		}))
		time.Sleep(3 * pipePause / 2)
		server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			ids <- r.URL.Query().Get("id")
			w.WriteHeader(http.StatusNoContent)
		})}
		t.Cleanup(func() { server.Close() })
		server.Serve(listen())
	}()
	client := api.NewUnix(socket)
	t.Cleanup(client.Close)
	if err := writeMessage(t.Context(), client, "web-1", "install", []byte("hello"), time.Minute); err != nil {
		t.Fatal(err)
	}
	if one, two := <-ids, <-ids; one == "" || one != two {
		t.Errorf("the message had the id %q, then %q", one, two)
	}
}

// A server that is not there is reported at once, however long a full pipe would be
// waited for.
func TestMessageToNobody(t *testing.T) {
	t.Parallel()
	client := api.NewUnix(filepath.Join(t.TempDir(), "s"))
	t.Cleanup(client.Close)
	begin := time.Now()
	err := writeMessage(t.Context(), client, "web-1", "install", []byte("hello"), time.Hour)
	if imprint.KindOf(err) != imprint.Unavailable || time.Since(begin) > time.Minute {
		t.Errorf("after %v: %v", time.Since(begin), err)
	}
}
