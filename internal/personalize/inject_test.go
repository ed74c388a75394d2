package personalize_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"imprint"
	"imprint/internal/personalize"
)

func TestParseInjection(t *testing.T) {
	mode := func(m uint32) *uint32 { return &m }
	for s, want := range map[string]personalize.Injection{
		"motd:/etc/motd":                      {Local: "motd", Guest: "/etc/motd"},
		"motd:/etc/":                          {Local: "motd", Guest: "/etc/"},
		"tree:/":                              {Local: "tree", Guest: "/"},
		"tree://srv/./web//x":                 {Local: "tree", Guest: "/srv/web/x"},
		"k:/etc/k:600":                        {Local: "k", Guest: "/etc/k", Mode: mode(0o600)},
		"k:/etc/k:0000":                       {Local: "k", Guest: "/etc/k", Mode: mode(0)},
		"k:/etc/k::postgres":                  {Local: "k", Guest: "/etc/k", User: "postgres"},
		"k:/etc/k:4755:0:adm":                 {Local: "k", Guest: "/etc/k", Mode: mode(0o4755), User: "0", Group: "adm"},
		`C\:\\a\:b:/srv/it\:is:0600`:          {Local: `C:\a:b`, Guest: "/srv/it:is", Mode: mode(0o600)},
		"-:/etc/-:::":                         {Local: "-", Guest: "/etc/-"},
		"a file:/srv/of it":                   {Local: "a file", Guest: "/srv/of it"},
		"k:/etc/k::4294967294:systemd-coredu": {Local: "k", Guest: "/etc/k", User: "4294967294", Group: "systemd-coredu"},
	} {
		got, err := personalize.ParseInjection(s)
		if err != nil {
			t.Errorf("%s: %v", s, err)
			continue
		}
		if show(got) != show(want) {
			t.Errorf("%s is %s, want %s", s, show(got), show(want))
		}
	}
	for s, want := range map[string]string{
		"":                                 "does not say where",
		"motd":                             "does not say where",
		":/etc/motd":                       "does not say which file",
		"a:etc/motd":                       "is not absolute",
		"a:":                               "is not absolute",
		"a:/etc/../motd":                   "goes up by ..",
		"a:/x:0888":                        `"0888" is no mode`,
		"a:/x:10000":                       "is no mode",
		"a:/x:-1":                          "is no mode",
		"a:/x::a b":                        `"a b" is neither`,
		"a:/x::4294967295":                 "is neither",
		"a:/x::root:wheel:more":            "it has 6 parts",
		`a:/x\`:                            "ends in a backslash",
		`a\n:/x`:                           "a backslash",
		"a\x00:/x":                         "zero byte",
		"a:/" + strings.Repeat("x/", 2000): "more than 4000 bytes",
	} {
		_, err := personalize.ParseInjection(s)
		if err == nil || imprint.KindOf(err) != imprint.Invalid || !strings.Contains(err.Error(), want) || imprint.HintOf(err) == "" {
			t.Errorf("%q: %v (%s); want %s", s, err, imprint.HintOf(err), want)
		}
	}
}

func show(in personalize.Injection) string {
	mode := "-"
	if in.Mode != nil {
		mode = fmt.Sprintf("%#o", *in.Mode)
	}
	return fmt.Sprintf("%q %q %q:%q %s", in.Local, in.Guest, in.User, in.Group, mode)
}

func FuzzParseInjection(f *testing.F) {
	f.Add("motd:/etc/motd:0640:root:adm")
	f.Add(`C\:\\a:/srv/`)
	f.Fuzz(func(t *testing.T, s string) {
		in, err := personalize.ParseInjection(s)
		if err != nil {
			return
		}
		if in.Local == "" || !strings.HasPrefix(in.Guest, "/") || strings.Contains(in.Guest+"/", "/../") {
			t.Errorf("%q is %+v", s, in)
		}
		escape := strings.NewReplacer(`\`, `\\`, ":", `\:`)
		again := escape.Replace(in.Local) + ":" + escape.Replace(in.Guest) + ":"
		if in.Mode != nil {
			again += fmt.Sprintf("%o", *in.Mode)
		}
		again += ":" + in.User + ":" + in.Group
		if back, err := personalize.ParseInjection(again); err != nil || show(back) != show(in) {
			t.Errorf("%q is %s, and %q is %s, %v", s, show(in), again, show(back), err)
		}
	})
}

// tree writes files below a new directory; one whose content begins with "-> " is a link.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if to, ok := strings.CutPrefix(content, "-> "); ok {
			err = os.Symlink(to, path)
		} else {
			err = os.WriteFile(path, []byte(content), 0o640)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func parse(t *testing.T, specs ...string) []personalize.Injection {
	t.Helper()
	var list []personalize.Injection
	for _, s := range specs {
		in, err := personalize.ParseInjection(s)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, in)
	}
	return list
}

// list returns what is in an archive.
func list(t *testing.T, b []byte) string {
	t.Helper()
	var out strings.Builder
	r := tar.NewReader(bytes.NewReader(b))
	for {
		h, err := r.Next()
		if err == io.EOF {
			return out.String()
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&out, "%c %s %o %d%s:%d%s %s%s\n", h.Typeflag, h.Name, h.Mode, h.Uid, h.Uname, h.Gid, h.Gname, h.Linkname, content)
	}
}

// The archive has what was named, with owners of the guest and not of this machine,
// and is the same each time.
func TestPack(t *testing.T) {
	dir := tree(t, map[string]string{
		"app/b": "second", "app/a/x": "first", "app/a/up": "-> ../../../etc/passwd", "app/empty/.keep": "", "motd": "hello",
		"su": "s", "link": "-> motd",
	})
	if err := os.Chmod(filepath.Join(dir, "su"), 0o4755|os.ModeSetuid); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(dir, "app/a"), 0o700); err != nil {
		t.Fatal(err)
	}
	injections := parse(t, dir+"/app:/srv/app", dir+"/motd:/etc/:0600:web", dir+"/app/a:/opt/a:0640:7:adm", dir+"/su:/usr/bin/su", dir+"/link:/etc/link")
	var first bytes.Buffer
	if err := personalize.Pack(t.Context(), &first, injections); err != nil {
		t.Fatal(err)
	}
	want := `5 srv/app/ 755 0:0 
5 srv/app/a/ 700 0:0 
2 srv/app/a/up 777 0:0 ../../../etc/passwd
0 srv/app/a/x 640 0:0 first
0 srv/app/b 640 0:0 second
5 srv/app/empty/ 755 0:0 
0 srv/app/empty/.keep 640 0:0 
0 etc/motd 600 0web:0 hello
5 opt/a/ 750 7:0adm 
2 opt/a/up 777 7:0adm ../../../etc/passwd
0 opt/a/x 640 7:0adm first
0 usr/bin/su 755 0:0 s
0 etc/link 640 0:0 hello
`
	if got := list(t, first.Bytes()); got != want {
		t.Errorf("the archive has\n%swant\n%s", got, want)
	}
	var second bytes.Buffer
	if err := personalize.Pack(t.Context(), &second, injections); err != nil || !bytes.Equal(first.Bytes(), second.Bytes()) {
		t.Errorf("the second archive is another: %v", err)
	}
	f, size, err := personalize.Inject(t.Context(), injections)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	held, err := io.ReadAll(io.NewSectionReader(f, 0, size))
	if err != nil || !bytes.Equal(held, first.Bytes()) {
		t.Errorf("%d bytes are held, %d were packed: %v", len(held), first.Len(), err)
	}
	again, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if _, err := again.WriteAt([]byte("x"), 0); err == nil {
		t.Error("what is held can be changed")
	}
}

// What cannot be injected is named.
func TestPackRefuses(t *testing.T) {
	dir := tree(t, map[string]string{"a": "1", "b": "2", "in/a": "3"})
	socket, err := net.Listen("unix", filepath.Join(dir, "in", "socket"))
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	big := filepath.Join(dir, "big")
	if err := os.WriteFile(big, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(big, personalize.MaxPacked+1); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		specs []string
		kind  imprint.Kind
		want  string
	}{
		{[]string{dir + "/none:/x"}, imprint.NotFound, "inject " + dir + "/none: "},
		{[]string{dir + "/in:/x"}, imprint.Invalid, "inject " + dir + "/in/socket: it is no file"},
		{[]string{"/dev/null:/x"}, imprint.Invalid, "inject /dev/null: it is no file"},
		{[]string{dir + "/a:/x", dir + "/b:/x"}, imprint.Invalid, "inject " + dir + "/b: /x would be this and " + dir + "/a"},
		{[]string{dir + "/big:/x"}, imprint.Exhausted, "inject " + dir + "/big: with it there are more than"},
	} {
		err := personalize.Pack(t.Context(), io.Discard, parse(t, c.specs...))
		if imprint.KindOf(err) != c.kind || err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v; want %s", c.specs, err, c.want)
		}
	}
}

// A file that grows or shrinks while it is read is not injected in part.
func TestPackChangingFile(t *testing.T) {
	for name, change := range map[string]func(path string) error{
		"grows": func(path string) error {
			f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			_, err = f.WriteString("more")
			return errors.Join(err, f.Close())
		},
		"shrinks": func(path string) error { return os.Truncate(path, 3) },
	} {
		dir := tree(t, map[string]string{"a": "content"})
		path := filepath.Join(dir, "a")
		w := &onWrite{do: func() error { return change(path) }}
		err := personalize.Pack(t.Context(), w, parse(t, path+":/x"))
		if imprint.KindOf(err) != imprint.Conflict || w.err != nil {
			t.Errorf("%s: %v, %v", name, err, w.err)
		}
	}
}

// onWrite does something at the first write, which is that of the first header.
type onWrite struct {
	do  func() error
	err error
}

func (w *onWrite) Write(b []byte) (int, error) {
	if w.do != nil {
		w.err = w.do()
		w.do = nil
	}
	return len(b), nil
}

// A link that takes the place of a file between looking and opening is not followed.
func TestPackRace(t *testing.T) {
	dir := tree(t, map[string]string{"in/a": "1", "in/b": "2", "secret": "out"})
	end := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := filepath.Join(dir, "in", "b")
		for {
			select {
			case <-end:
				return
			default:
			}
			os.Remove(b)
			os.Symlink(filepath.Join(dir, "secret"), b)
			os.Remove(b)
			os.WriteFile(b, []byte("2"), 0o600)
		}
	}()
	injections := parse(t, dir+"/in:/x")
	for range 500 {
		var b bytes.Buffer
		if err := personalize.Pack(t.Context(), &b, injections); err == nil && bytes.Contains(b.Bytes(), []byte("out")) && !bytes.Contains(b.Bytes(), []byte("secret")) {
			t.Error("a link out of the directory was followed")
		}
	}
	close(end)
	<-done
}
