package metadata_test

import (
	"bytes"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"imprint"
	"imprint/internal/metadata"
)

const passwordPath = "/openstack/2013-04-04/password"

// What nova/api/metadata/password.py does, as clients rely on it.
func TestPasswordIsPostedOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t, instance(), nil)
	step := func(method, path, body string, status int, want string) {
		t.Helper()
		if got, text := w.do(processPort, method, path, body); got != status || text != want {
			t.Errorf("%s %s: %d %q, want %d %q", method, path, got, text, status, want)
		}
	}
	step("GET", passwordPath, "", 200, "")
	step("POST", passwordPath, "", 200, "")
	step("GET", passwordPath, "", 200, "") // an empty one counts as unset
	for _, method := range []string{"PUT", "DELETE", "HEAD"} {
		step(method, passwordPath, "x", 400, "GET and POST only are supported.\n")
	}
	step("POST", passwordPath, strings.Repeat("x", metadata.MaxPassword+1), 400, "Request is too large.\n")
	step("POST", passwordPath, "\xff\xfe", 400, "The password is not text.\n")
	secret := strings.Repeat("QUJD", 1368/4) // RSA-8192 in base64
	step("POST", "//openstack/latest/./password/", secret, 200, "")
	step("GET", passwordPath, "", 200, secret)
	step("GET", "/openstack/latest/password", "", 200, secret)
	step("POST", passwordPath, secret, 409, "Conflict\n")
	step("POST", "/openstack/latest/password", "other", 409, "Conflict\n")
	step("POST", "/openstack/2012-08-10/password", "other", 404, "Not Found\n")
	if string(w.inst.Enrolment.Password) != secret {
		t.Errorf("kept %q", w.inst.Enrolment.Password)
	}
}

func TestOneOfManyPasswordsWins(t *testing.T) {
	t.Parallel()
	w := newWorld(t, instance(), nil)
	var wins, conflicts int
	var mu sync.Mutex
	var all sync.WaitGroup
	for i := range 16 {
		all.Go(func() {
			status, _ := w.do(processPort, "POST", passwordPath, strings.Repeat("x", i+1))
			mu.Lock()
			defer mu.Unlock()
			switch status {
			case 200:
				wins++
			case 409:
				conflicts++
			}
		})
	}
	all.Wait()
	if wins != 1 || conflicts != 15 {
		t.Errorf("%d won, %d conflicted", wins, conflicts)
	}
}

func TestBodiesThatAreNotWhole(t *testing.T) {
	t.Parallel()
	w := newWorld(t, instance(), nil)
	for name, body := range map[string]*http.Request{
		"too long without a length": chunked("POST", passwordPath, bytes.NewReader(bytes.Repeat([]byte("x"), metadata.MaxPassword+1))),
		"cut off":                   chunked("POST", passwordPath, cutOff{}),
		"cut off, native":           chunked("PUT", "/imprint/v1/request", cutOff{}),
	} {
		if reply := w.reply(body); reply.Code != 400 {
			t.Errorf("%s: %d %q", name, reply.Code, reply.Body)
		}
	}
	if w.inst.Enrolment.Password != nil || len(w.put) != 0 {
		t.Errorf("kept %q, %q", w.inst.Enrolment.Password, w.put)
	}
	if reply := w.reply(chunked("POST", passwordPath, strings.NewReader("whole"))); reply.Code != 200 || string(w.inst.Enrolment.Password) != "whole" {
		t.Errorf("a whole one without a length: %d", reply.Code)
	}
}

// pipeGet reads a pipe as root.
func pipeGet(w *world, path string) (status int, message, receipt string) {
	reply := w.reply(request(rootPort, "GET", path, ""))
	return reply.Code, reply.Body.String(), reply.Header().Get("X-Imprint-Message")
}

func TestMessagesStayUntilTheReaderSaysItHasThem(t *testing.T) {
	t.Parallel()
	const read = "/ganeti/latest/read"
	w := newWorld(t, instance(), nil)
	for _, message := range []string{"same\n", "same\n", "last\n"} {
		w.send("default", message)
	}
	w.send("console", "elsewhere")
	var receipt string
	for range 3 { // readers that die with the message lose nothing
		var status int
		var message string
		if status, message, receipt = pipeGet(w, read); status != 200 || message != "same\n" || receipt == "" {
			t.Fatalf("%d %q %s", status, message, receipt)
		}
	}
	var second string
	for range 2 { // the reply to an acknowledgement was lost: it removes nothing else, and no equal message
		var message string
		if _, message, second = pipeGet(w, read+"?after="+receipt); message != "same\n" || second == receipt {
			t.Errorf("after the first: %q with receipt %s", message, second)
		}
	}
	if _, message, _ := pipeGet(w, read+"?after="+second); message != "last\n" {
		t.Errorf("after the second: %q", message)
	}
	if _, message, _ := pipeGet(w, read+"/console?wait=0"); message != "elsewhere" {
		t.Errorf("the other pipe: %q", message)
	}
	for path, want := range map[string]int{
		read + "/none": 404, read + "/Bad_Name": 404, read + "/a/b": 404, read + "/": 404, read + "?wait=x": 400, read + "?wait=-1": 400,
	} {
		if status, _, _ := pipeGet(w, path); status != want {
			t.Errorf("%s: %d, want %d", path, status, want)
		}
	}
	if status, _ := w.get(read); status != 403 {
		t.Errorf("a process reads: %d", status)
	}
	if status, _ := w.do(rootPort, "POST", read, "x"); status != 405 {
		t.Errorf("POST: %d", status)
	}
}

func TestReadingAnEmptyPipeWaitsForAMessage(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, instance(), nil)
		start := time.Now()
		time.AfterFunc(3*time.Second, func() { w.send("default", "late") })
		if _, message, _ := pipeGet(w, "/ganeti/latest/read"); message != "late" || time.Since(start) != 3*time.Second {
			t.Errorf("%q after %s", message, time.Since(start))
		}
		for wait, want := range map[string]time.Duration{"": metadata.PipeWait, "?wait=5": 5 * time.Second, "?wait=0": 0, "?wait=9999": metadata.PipeWait} {
			start = time.Now()
			status, message, digest := pipeGet(w, "/ganeti/latest/read/console"+wait)
			if status != 200 || message != "" || digest != "" || time.Since(start) != want {
				t.Errorf("%q: %d %q %q after %s", wait, status, message, digest, time.Since(start))
			}
		}
	})
}

func TestWritingAPipe(t *testing.T) {
	t.Parallel()
	const write = "/ganeti/latest/write"
	w := newWorld(t, instance(), nil)
	for _, c := range []struct {
		from, method, path, body string
		want                     int
	}{
		{processPort, "POST", write, "x", 403}, {rootPort, "GET", write, "", 405}, {rootPort, "POST", write + "/", "x", 404},
		{rootPort, "POST", write, strings.Repeat("x", imprint.MaxMessage+1), 400},
		{rootPort, "POST", write, "one", 200}, {rootPort, "POST", write, "two", 200}, {rootPort, "POST", write, "three", 400},
		{rootPort, "POST", write + "/console", "four", 200}, {rootPort, "POST", write + "?id=" + strings.Repeat("x", 129), "x", 400},
	} {
		if status, body := w.do(c.from, c.method, c.path, c.body); status != c.want {
			t.Errorf("%s %s from %s: %d %q, want %d", c.method, c.path, c.from, status, body, c.want)
		}
	}
	r := chunked("POST", write, strings.NewReader("x"))
	r.RemoteAddr = rootPort
	if reply := w.reply(r); reply.Code != 411 {
		t.Errorf("without a length: %d", reply.Code)
	}
	if got := strings.Join(w.up["default"], " ") + "/" + strings.Join(w.up["console"], " "); got != "one two/four" {
		t.Errorf("arrived %q", got)
	}
}

// What a writer calls the same is one message: the first reply was lost.
func TestAWriterMayRepeatItself(t *testing.T) {
	t.Parallel()
	w := newWorld(t, instance(), nil)
	for _, query := range []string{"?id=1", "?id=1", "?id=2"} {
		if status, body := w.do(rootPort, "POST", "/ganeti/latest/write"+query, "tick"); status != 200 {
			t.Errorf("%s: %d %s", query, status, body)
		}
	}
	if got := w.up["default"]; len(got) != 2 {
		t.Errorf("arrived %q", got)
	}
}

// Who may do what with each of imprint's own keys: what is not here is refused.
func TestAccessToEveryNativeKey(t *testing.T) {
	t.Parallel()
	w := newWorld(t, instance(), nil)
	// The letters say who may GET, PUT and DELETE: anyone, root, nobody.
	for key, want := range map[string]string{
		"payload": "ann", "ca": "ann", "params": "ann", "param/motd": "ann", "sealed/token": "ann", "ssh-certificate": "ann",
		"request": "nrn", "confirmation": "nrn", "ready": "nrn", "password": "nrn", "pipe": "rrn", "pipe/0123": "nnr",
		"other": "nnn", "pipe/": "nnn", "param": "nnn", "param/": "nnn", "request/x": "nnn",
	} {
		for i, method := range []string{"GET", "PUT", "DELETE"} {
			for _, from := range []string{processPort, rootPort} {
				status, _ := w.do(from, method, "/imprint/v1/"+key, "value")
				served := want[i] == 'a' || want[i] == 'r' && from == rootPort
				if served != (status == 200) || !served && status != 403 && status != 404 && status != 405 {
					t.Errorf("%s %s from %s: %d, want %c", method, key, from, status, want[i])
				}
			}
		}
	}
	if w.put["imprint:request"] != "value" || w.put["imprint:pipe/0123"] != "deleted" {
		t.Errorf("arrived %q", w.put)
	}
	for path, want := range map[string]int{"certificate": 404, "state": 503, "time": 500} {
		if status, body := w.do(rootPort, "GET", "/imprint/v1/"+path, ""); status != want || strings.Contains(body, "canary") {
			t.Errorf("%s: %d %q, want %d", path, status, body, want)
		}
	}
	if status, body := w.do(rootPort, "POST", "/imprint/v1/request", "bad"); status != 400 || body != "read request: it does not start with a PEM certificate request\n" {
		t.Errorf("a fault is told as %d %q", status, body)
	}
}

// chunked is a request whose body has no length.
func chunked(method, path string, body io.Reader) *http.Request {
	r := request(rootPort, method, path, "")
	r.Body, r.ContentLength = io.NopCloser(body), -1
	return r
}

// cutOff is a body that ends too soon.
type cutOff struct{}

func (cutOff) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }
