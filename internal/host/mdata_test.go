package host_test

import (
	"bufio"
	"encoding/base64"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"imprint"
)

// run is one run of a program in the recording.
type run struct {
	command        string
	lines          []string // what was on the wire, each with its direction
	stdout, stderr string
	exit           int
}

// readRuns reads the recording; its head says what it is.
func readRuns(t *testing.T) (runs []run) {
	t.Helper()
	b, err := os.ReadFile("testdata/mdata-client.txt")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		line = strings.TrimSuffix(line, "\n")
		what, rest, _ := strings.Cut(line, " ")
		if what == "$" {
			runs = append(runs, run{command: rest})
			continue
		}
		if len(runs) == 0 || line == "" {
			continue
		}
		r, err := &runs[len(runs)-1], error(nil)
		switch what {
		case ">", "<":
			r.lines = append(r.lines, line)
		case "stdout":
			r.stdout, err = strconv.Unquote(rest)
		case "stderr":
			r.stderr, err = strconv.Unquote(rest)
		case "exit":
			r.exit, err = strconv.Atoi(rest)
		default:
			err = fmt.Errorf("%q begins with an unknown word", line)
		}
		if err != nil {
			t.Fatalf("the recording of %s: %v", r.command, err)
		}
	}
	return runs
}

// The programs of mdata-client are answered as they were when they were recorded.
// An answer that differs is judged as they would judge it: it may be meant, but
// what they print and their exit status stay.
func TestMdataClientIsServed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	h, _ := start(t, w, runDir(t))
	id := w.reserve("web-1")
	w.settle(t)
	conn := knock(t, h.Socket(id, imprint.Serial2))
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	answers := bufio.NewReader(conn)
	runs := readRuns(t)
	if len(runs) < 20 {
		t.Fatalf("the recording has %d runs", len(runs))
	}
	for _, r := range runs {
		var sent, answer string
		for _, line := range r.lines {
			text := strings.TrimPrefix(line[1:], " ")
			if line[0] == '>' {
				sent = text
				if _, err := io.WriteString(conn, text+"\n"); err != nil {
					t.Fatal(err)
				}
				continue
			}
			got, err := answers.ReadString('\n')
			if err != nil {
				t.Fatalf("%s: no answer to %q: %v", r.command, sent, err)
			}
			if answer = strings.TrimSuffix(got, "\n"); answer != text {
				t.Errorf("%s: %q was answered with %q; want %q", r.command, sent, answer, text)
			}
		}
		judge(t, r, sent, answer)
	}
}

// judge fails the test unless the program of r, which sent a request and got
// answer, would print what it printed and exit as it did. The rules are those of
// mdata-client's proto_parse_v2 and print_response, not of package triton.
func judge(t *testing.T, r run, sent, answer string) {
	t.Helper()
	head := strings.SplitN(answer, " ", 4)
	if len(head) < 4 || head[0] != "V2" || head[1] != strconv.Itoa(len(head[3])) ||
		head[2] != fmt.Sprintf("%08x", crc32.ChecksumIEEE([]byte(head[3]))) {
		t.Errorf("%s would drop %q", r.command, answer)
		return
	}
	body := strings.SplitN(head[3], " ", 3)
	if len(body) < 2 || body[0] != strings.Fields(sent)[3] {
		t.Errorf("%s would take %q for the answer to another request", r.command, answer)
		return
	}
	var data []byte
	if len(body) == 3 {
		var err error
		if data, err = base64.StdEncoding.DecodeString(body[2]); err != nil {
			t.Errorf("%s would drop %q: %v", r.command, answer, err)
			return
		}
	}
	stdout, exit := "", 2
	switch body[1] {
	case "SUCCESS":
		exit = 0
		if strings.HasPrefix(r.command, "mdata-get") || strings.HasPrefix(r.command, "mdata-list") {
			stdout = strings.TrimSuffix(string(data), "\n") + "\n"
		}
	case "NOTFOUND":
		exit = 1
	default:
		if want := ": " + string(data) + "\n"; !strings.HasSuffix(r.stderr, want) {
			t.Errorf("%s would say %q; it said %q", r.command, want, r.stderr)
		}
	}
	if stdout != r.stdout || exit != r.exit {
		t.Errorf("%s would print %q and exit with %d; it printed %q and exited with %d", r.command, stdout, exit, r.stdout, r.exit)
	}
}
