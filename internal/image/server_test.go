package image_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"imprint"
	"imprint/internal/disk"
	"imprint/internal/image"
)

// server has files, and does what a test tells it to do wrong.
type server struct {
	*httptest.Server
	mu    sync.Mutex
	files map[string][]byte
	asked []*http.Request
	sent  int64                                                    // bytes of files
	wrong func(n int, w http.ResponseWriter, r *http.Request) bool // answers the nth request, from 1, if it returns true
}

func serve(t *testing.T, files map[string][]byte) *server {
	s := &server{files: files}
	s.Server = httptest.NewServer(s)
	t.Cleanup(s.Close)
	return s
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.asked = append(s.asked, r)
	n, wrong, b := len(s.asked), s.wrong, s.files[r.URL.Path]
	s.mu.Unlock()
	if wrong != nil && wrong(n, w, r) {
		return
	}
	if b == nil {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("ETag", etag(b))
	http.ServeContent(&counted{w, s}, r, "", time.Time{}, bytes.NewReader(b))
}

func etag(b []byte) string { return fmt.Sprintf(`"%x"`, sha256.Sum256(b)) }

type counted struct {
	http.ResponseWriter
	s *server
}

func (c *counted) Write(b []byte) (int, error) {
	n, err := c.ResponseWriter.Write(b)
	c.s.mu.Lock()
	c.s.sent += int64(n)
	c.s.mu.Unlock()
	return n, err
}

// requests are those that came so far, and bytes how many of files were sent.
func (s *server) requests() []*http.Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.asked)
}

func (s *server) bytes() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sent
}

// cutAfter answers with the whole file, of which only n bytes come.
func (s *server) cutAfter(w http.ResponseWriter, b []byte, n int) bool {
	w.Header().Set("ETag", etag(b))
	w.Header().Set("Content-Length", fmt.Sprint(len(b)))
	w.Write(b[:n])
	w.(http.Flusher).Flush()
	panic(http.ErrAbortHandler)
}

func sumOf(b []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(b)) }

func storeIn(dir string, limit int64) *image.Store {
	return image.Impatient(image.NewStore(image.Config{Cache: dir, MaxCache: limit}))
}

// holds fails unless an image is the bytes, checked.
func holds(t *testing.T, s *image.Source, b []byte) {
	t.Helper()
	digest, err := s.Check(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if "sha256:"+string(digest) != sumOf(b) {
		t.Errorf("it is another file")
	}
}

// An image comes over the network once, however many want it at the same time, and is
// in the cache, for its owner alone, afterwards.
func TestFetchedOnce(t *testing.T) {
	want := diskBytes(1, 3*mib)
	web := serve(t, map[string][]byte{"/a.raw": want})
	cache := filepath.Join(t.TempDir(), "cache")
	m := imprint.Image{Source: web.URL + "/a.raw", Sum: sumOf(want)}
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			s, err := storeIn(cache, 0).Open(t.Context(), m, image.OpenOptions{})
			if err != nil {
				t.Error(err)
				return
			}
			defer s.Close()
			holds(t, s, want)
		})
	}
	group.Wait()
	if len(web.requests()) != 1 {
		t.Errorf("it was asked for %d times", len(web.requests()))
	}
	for path, mode := range map[string]os.FileMode{"": 0o700, "blobs": 0o700, "blobs/" + strings.Replace(sumOf(want), ":", "-", 1): 0o400} {
		if info, err := os.Stat(filepath.Join(cache, path)); err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v; want mode %v", path, info, err, mode)
		}
	}
	for _, dir := range []string{"partial", "locks"} {
		if left, _ := os.ReadDir(filepath.Join(cache, dir)); len(left) > 0 {
			t.Errorf("%s has %v", dir, left)
		}
	}
}

// A connection that is cut costs what was not there yet, and no more.
func TestGoesOnAfterACut(t *testing.T) {
	want := diskBytes(2, 4*mib)
	web := serve(t, map[string][]byte{"/a.raw": want})
	web.wrong = func(n int, w http.ResponseWriter, r *http.Request) bool {
		return n == 1 && web.cutAfter(w, want, 3*mib)
	}
	s, err := storeIn(t.TempDir(), 0).Open(t.Context(), imprint.Image{Source: web.URL + "/a.raw", Sum: sumOf(want)}, image.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	holds(t, s, want)
	if len(web.requests()) != 2 || web.bytes() > mib {
		t.Errorf("%d requests, of which those after the cut sent %d bytes", len(web.requests()), web.bytes())
	}
	if r := web.requests()[1]; r.Header.Get("Range") != fmt.Sprintf("bytes=%d-", 3*mib) || r.Header.Get("If-Range") != etag(want) {
		t.Errorf("the second asks for %q if it is %q", r.Header.Get("Range"), r.Header.Get("If-Range"))
	}
}

// A file that changes between two ranges is never a mixture, even if the server does
// not look at what it is asked.
func TestChangedBetweenRanges(t *testing.T) {
	old, now := diskBytes(3, 2*mib), diskBytes(4, 2*mib)
	for name, lies := range map[string]func(w http.ResponseWriter, r *http.Request){
		"server looks": nil,
		"server does not look": func(w http.ResponseWriter, r *http.Request) {
			r.Header.Del("If-Range")
		},
		"server says another size": func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Range") != "" {
				w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", mib, 3*mib-1, 3*mib))
				w.Header().Set("ETag", etag(old))
				w.WriteHeader(http.StatusPartialContent)
				w.(http.Flusher).Flush()
				panic(http.ErrAbortHandler)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			web := serve(t, map[string][]byte{"/a.raw": now})
			web.wrong = func(n int, w http.ResponseWriter, r *http.Request) bool {
				if n == 1 {
					return web.cutAfter(w, old, mib)
				}
				if lies != nil {
					lies(w, r)
				}
				return false
			}
			// Nobody says what it should be, so only the ranges can tell.
			s, err := storeIn(t.TempDir(), 0).Open(t.Context(), imprint.Image{Source: web.URL + "/a.raw"}, image.OpenOptions{})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			holds(t, s, now)
		})
	}
}

// A server that begins elsewhere than it was asked to is not believed.
func TestBeginsElsewhere(t *testing.T) {
	want := diskBytes(4, 2*mib)
	web := serve(t, map[string][]byte{"/a.raw": want})
	web.wrong = func(n int, w http.ResponseWriter, r *http.Request) bool {
		switch n {
		case 1:
			return web.cutAfter(w, want, mib)
		case 2:
			w.Header().Set("ETag", etag(want))
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", mib+1, 2*mib-1, 2*mib))
			w.WriteHeader(http.StatusPartialContent)
			w.Write(want[mib+1:])
			return true
		}
		return false
	}
	s, err := storeIn(t.TempDir(), 0).Open(t.Context(), imprint.Image{Source: web.URL + "/a.raw"}, image.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	holds(t, s, want)
}

// What a server does wrong is said in a sentence with the right kind, without the
// password and the token, and leaves nothing in the cache.
func TestServerAtFault(t *testing.T) {
	body := diskBytes(5, mib)
	status := func(code int) func(*server, http.ResponseWriter, *http.Request) {
		return func(_ *server, w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
	}
	to := func(url string) func(*server, http.ResponseWriter, *http.Request) {
		return func(_ *server, w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Location", url)
			w.WriteHeader(http.StatusFound)
		}
	}
	for name, test := range map[string]struct {
		answer func(*server, http.ResponseWriter, *http.Request)
		kind   imprint.Kind
		text   string
		asked  int
	}{
		"not found":              {status(404), imprint.NotFound, "the server has no such file (status 404)", 1},
		"gone":                   {status(410), imprint.NotFound, "no such file", 1},
		"needs a password":       {status(401), imprint.Denied, "wants a user name and a password", 1},
		"forbidden":              {status(403), imprint.Denied, "does not give it to us", 1},
		"refused":                {status(400), imprint.Invalid, "refuses the request", 1},
		"broken":                 {status(503), imprint.Unavailable, "cannot answer now (status 503)", 5},
		"no content":             {status(204), imprint.Invalid, "no file", 1},
		"redirected to a file":   {to("file:///etc/passwd"), imprint.Denied, `redirected to a URL of the scheme "file"`, 1},
		"redirected in a circle": {to("/a.raw"), imprint.Denied, "redirected more than 5 times", 6},
		"redirected to metadata": {to("http://169.254.169.254/latest"), imprint.Denied, "link-local", 1},
		"always cut": {func(s *server, w http.ResponseWriter, _ *http.Request) { s.cutAfter(w, body, 0) },
			imprint.Unavailable, "cut after 0 of 1048576 bytes", 5},
		"too short": {func(s *server, w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", fmt.Sprint(2*mib)) // and no way to go on
			w.Write(body)
		}, imprint.Unavailable, "cut after 1048576 of 2097152 bytes", 0},
		"compressed unasked": {func(_ *server, w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			w.Write(body)
		}, imprint.Invalid, "encoding", 1},
		"too large": {func(_ *server, w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", fmt.Sprint(int64(1)<<40))
			w.Write(body)
		}, imprint.Exhausted, "it has 1 TiB, and the cache may have 8 MiB", 1},
		"without an end": {func(_ *server, w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				if _, err := w.Write(body); err != nil {
					return
				}
			}
		}, imprint.Exhausted, "the cache may have 8 MiB", 1},
		"another file": {func(_ *server, w http.ResponseWriter, _ *http.Request) { w.Write(body[1:]) },
			imprint.Invalid, "its SHA256 is", 1},
	} {
		t.Run(name, func(t *testing.T) {
			web := serve(t, nil)
			web.wrong = func(_ int, w http.ResponseWriter, r *http.Request) bool { test.answer(web, w, r); return true }
			cache := t.TempDir()
			source := web.URL + "/a.raw?token=hunter2"
			s, err := storeIn(cache, 8*mib).Open(t.Context(), imprint.Image{Source: source, Sum: sumOf(body)}, image.OpenOptions{})
			if err == nil {
				s.Close()
				t.Fatal("it was taken for an image")
			}
			if imprint.KindOf(err) != test.kind || !strings.Contains(err.Error(), test.text) {
				t.Errorf("%v: %v; want %v: %s", imprint.KindOf(err), err, test.kind, test.text)
			}
			if said := err.Error() + imprint.HintOf(err); strings.Contains(said, "hunter2") {
				t.Errorf("the token is in %q", said)
			}
			if test.asked > 0 && len(web.requests()) != test.asked {
				t.Errorf("it was asked %d times; want %d", len(web.requests()), test.asked)
			}
			if left, _ := os.ReadDir(filepath.Join(cache, "blobs")); len(left) > 0 {
				t.Errorf("the cache has %v", left)
			}
		})
	}
}

// The password is for the server that was named, over TLS, and in no message.
func TestCredentials(t *testing.T) {
	body := diskBytes(6, mib)
	other := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "" || r.Header.Get("Referer") != "" {
			t.Errorf("the other server is told %q and %q", r.Header.Get("Authorization"), r.Header.Get("Referer"))
		}
		w.Write(body)
	}))
	defer other.Close()
	named := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, pass, _ := r.BasicAuth(); user != "robot" || pass != "hun:ter2" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		http.Redirect(w, r, other.URL+"/b.raw", http.StatusFound)
	}))
	defer named.Close()
	ca := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: named.Certificate().Raw}))
	m := imprint.Image{Source: named.URL + "/a.raw", Sum: sumOf(body), CA: ca}
	secret := imprint.NewSecret([]byte("robot:hun:ter2"))
	s, err := storeIn(t.TempDir(), 0).Open(t.Context(), m, image.OpenOptions{Credentials: secret})
	if err != nil {
		t.Fatal(err)
	}
	holds(t, s, body)
	s.Close()

	_, err = storeIn(t.TempDir(), 0).Open(t.Context(), m, image.OpenOptions{})
	if imprint.KindOf(err) != imprint.Denied || !strings.Contains(err.Error(), "wants a user name") {
		t.Errorf("without a password: %v", err)
	}
	m.CA = ""
	_, err = storeIn(t.TempDir(), 0).Open(t.Context(), m, image.OpenOptions{Credentials: secret})
	if imprint.KindOf(err) != imprint.Denied || !strings.Contains(imprint.HintOf(err), "image.ca") {
		t.Errorf("by the system's authorities: %v", err)
	}
	m.Source = "http://127.0.0.1:1/a.raw"
	_, err = storeIn(t.TempDir(), 0).Open(t.Context(), m, image.OpenOptions{Credentials: secret})
	if imprint.KindOf(err) != imprint.Invalid || !strings.Contains(err.Error(), "plain http") || strings.Contains(err.Error(), "ter2") {
		t.Errorf("over plain http: %v", err)
	}
}

// An https source that leads to plain http is not followed.
func TestNoWayFromTLS(t *testing.T) {
	plain := serve(t, map[string][]byte{"/a.raw": diskBytes(7, mib)})
	named := httptest.NewTLSServer(http.RedirectHandler(plain.URL+"/a.raw", http.StatusFound))
	defer named.Close()
	ca := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: named.Certificate().Raw}))
	_, err := storeIn(t.TempDir(), 0).Open(t.Context(), imprint.Image{Source: named.URL + "/a.raw", CA: ca}, image.OpenOptions{})
	if imprint.KindOf(err) != imprint.Denied || !strings.Contains(err.Error(), "from https to plain http") || len(plain.requests()) > 0 {
		t.Errorf("%v, after %d requests", err, len(plain.requests()))
	}
}

// The cache keeps what was used last, within its bound, and what is in use in any case.
func TestCacheIsBounded(t *testing.T) {
	files := map[string][]byte{}
	for _, name := range []string{"/a", "/b", "/c", "/d"} {
		files[name] = diskBytes(uint64(name[1]), mib)
	}
	web, cache := serve(t, files), t.TempDir()
	get := func(name string) (*image.Source, error) {
		return storeIn(cache, 5*mib/2).Open(t.Context(), imprint.Image{Source: web.URL + name, Sum: sumOf(files[name])}, image.OpenOptions{})
	}
	use := func(name string) {
		t.Helper()
		s, err := get(name)
		if err != nil {
			t.Fatal(err)
		}
		s.Close()
	}
	use("/a")
	use("/b")
	use("/a")
	use("/c") // for which b has to go
	before := len(web.requests())
	use("/a")
	use("/c")
	if len(web.requests()) != before {
		t.Errorf("what was used last was fetched again")
	}
	cached, err := storeIn(cache, 0).Cached()
	if err != nil || len(cached) != 2 || cached[0].Name != sumOf(files["/c"]) || cached[1].Name != sumOf(files["/a"]) {
		t.Errorf("the cache has %v, %v", cached, err)
	}
	a, err := get("/a")
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	c, err := get("/c")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := get("/d"); imprint.KindOf(err) != imprint.Exhausted || !strings.Contains(err.Error(), "2 MiB are in use") {
		t.Errorf("while all is in use: %v", err)
	}
	c.Close()
	use("/d")
	holds(t, a, files["/a"])
}

// What became of a cached image is seen before the disk has a partition table, and the
// next installation fetches it anew.
func TestCacheIsVerifiedOnUse(t *testing.T) {
	want := diskBytes(8, 3*mib)
	web, cache := serve(t, map[string][]byte{"/a.raw": want}), t.TempDir()
	m := imprint.Image{Source: web.URL + "/a.raw", Sum: sumOf(want)}
	once := func() (string, error) {
		s, err := storeIn(cache, 0).Open(t.Context(), m, image.OpenOptions{})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		path := dirty(t, 4*mib)
		d, err := disk.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		_, err = s.Write(t.Context(), d, image.WriteOptions{})
		return path, err
	}
	if _, err := once(); err != nil {
		t.Fatal(err)
	}
	blob := filepath.Join(cache, "blobs", strings.Replace(sumOf(want), ":", "-", 1))
	spoilt := bytes.Clone(want)
	spoilt[2*mib] ^= 1
	os.Remove(blob)
	if err := os.WriteFile(blob, spoilt, 0o400); err != nil {
		t.Fatal(err)
	}
	path, err := once()
	if imprint.KindOf(err) != imprint.Invalid || !strings.Contains(err.Error(), "its SHA256 is") {
		t.Errorf("a spoilt image was written: %v", err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	head := make([]byte, mib)
	if _, err := io.ReadFull(f, head); err != nil || !disk.IsZero(head) {
		t.Errorf("the disk has a beginning: %v", err)
	}
	path, err = once()
	if err != nil {
		t.Fatal(err)
	}
	wantDisk(t, path, want)
}

// A process that is killed while it fetches leaves what it has, and the next one goes on
// from there: what is in the cache under its name is whole in any case.
func TestKilledWhileFetching(t *testing.T) {
	want := diskBytes(11, 4*mib)
	web := serve(t, map[string][]byte{"/a.raw": want})
	got := make(chan struct{})
	web.mu.Lock() // since the client is another process
	web.wrong = func(n int, w http.ResponseWriter, r *http.Request) bool {
		if n > 1 {
			return false
		}
		w.Header().Set("ETag", etag(want))
		w.Header().Set("Content-Length", fmt.Sprint(len(want)))
		w.Write(want[:3*mib])
		w.(http.Flusher).Flush()
		close(got)
		<-r.Context().Done()
		return true
	}
	web.mu.Unlock()
	cache := t.TempDir()
	c := exec.Command(os.Args[0], childFetch, web.URL+"/a.raw", cache, sumOf(want))
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	<-got
	if _, err := io.ReadFull(out, make([]byte, 5)); err != nil { // it has some
		t.Fatal(err)
	}
	c.Process.Kill()
	c.Wait()
	if left, _ := os.ReadDir(filepath.Join(cache, "blobs")); len(left) > 0 {
		t.Errorf("the cache has %v", left)
	}
	s, err := storeIn(cache, 0).Open(t.Context(), imprint.Image{Source: web.URL + "/a.raw", Sum: sumOf(want)}, image.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	holds(t, s, want)
	if len(web.requests()) != 2 || web.requests()[1].Header.Get("Range") == "" || web.bytes() >= int64(len(want)) {
		t.Errorf("%d requests, the second for %q", len(web.requests()), web.requests()[1].Header.Get("Range"))
	}
}

// What such a process left may be damaged as well. Then all of it is fetched.
func TestDamagedPartial(t *testing.T) {
	want := diskBytes(12, 2*mib)
	web, cache := serve(t, map[string][]byte{"/a.raw": want}), t.TempDir()
	name := filepath.Join(cache, "partial", strings.Replace(sumOf(want), ":", "-", 1))
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		t.Fatal(err)
	}
	version := fmt.Sprintf(`{"url": %q, "etag": %q, "size": %d}`, web.URL+"/a.raw", etag(want), len(want))
	if err := os.WriteFile(name, make([]byte, mib), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name+".version", []byte(version), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := storeIn(cache, 0).Open(t.Context(), imprint.Image{Source: web.URL + "/a.raw", Sum: sumOf(want)}, image.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	holds(t, s, want)
	if len(web.requests()) != 2 {
		t.Errorf("%d requests", len(web.requests()))
	}
}

// childFetch tells a child of the test to fetch an image.
const childFetch = "fetch"

// fetchUntilKilled fetches as imprint does, and says when it has the most of it.
func fetchUntilKilled(source, cache, sum string) {
	image.NewStore(image.Config{Cache: cache}).Open(context.Background(), imprint.Image{Source: source, Sum: sum}, image.OpenOptions{Progress: func(done, total int64) {
		if done >= total/2 {
			fmt.Println("half")
		}
	}})
	panic("it was not killed")
}
