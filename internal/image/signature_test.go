package image_test

import (
	"bytes"
	"crypto/rand"
	"crypto/sha512"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"aead.dev/minisign"

	"imprint"
	"imprint/internal/image"
	"imprint/test/need"
)

// gpg is the real one, with a home of its own.
type gpg struct {
	t    *testing.T
	home string
}

func newGPG(t *testing.T, algorithm string) *gpg {
	t.Helper()
	need.Program(t, "gpg", "gnupg")
	home, err := os.MkdirTemp("", "g") // its socket's path has to be short
	if err != nil {
		t.Fatal(err)
	}
	g := &gpg{t, home}
	t.Cleanup(func() {
		exec.Command("gpgconf", "--homedir", home, "--kill", "all").Run()
		os.RemoveAll(home)
	})
	g.run("", "--quick-generate-key", "images@example.org", algorithm, "sign", "never")
	return g
}

func (g *gpg) run(in string, args ...string) string {
	g.t.Helper()
	c := exec.Command("gpg", append([]string{"--homedir", g.home, "--batch", "--passphrase", ""}, args...)...)
	c.Stdin = strings.NewReader(in)
	var out, errs bytes.Buffer
	c.Stdout, c.Stderr = &out, &errs
	if err := c.Run(); err != nil {
		g.t.Fatalf("gpg %q: %v\n%s", args, err, errs.String())
	}
	return out.String()
}

func (g *gpg) key() string { return g.run("", "--armor", "--export") }

func sum512(b []byte) string { return fmt.Sprintf("%x", sha512.Sum512(b)) }

// signer is a publisher: what is pinned, and how it signs.
type signer struct {
	key  string
	sign func(b []byte) []byte
}

func signers(t *testing.T) map[string]signer {
	ed, rsa := newGPG(t, "ed25519"), newGPG(t, "rsa3072")
	public, private, err := minisign.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	text, err := public.MarshalText()
	if err != nil {
		t.Fatal(err)
	}
	return map[string]signer{
		"OpenPGP, Ed25519, armoured": {ed.key(), func(b []byte) []byte { return []byte(ed.run(string(b), "--armor", "--detach-sign")) }},
		"OpenPGP, RSA, binary":       {rsa.key(), func(b []byte) []byte { return []byte(rsa.run(string(b), "--detach-sign")) }},
		"minisign": {string(text), func(b []byte) []byte {
			r := minisign.NewReader(bytes.NewReader(b))
			if _, err := new(bytes.Buffer).ReadFrom(r); err != nil {
				t.Fatal(err)
			}
			return r.Sign(private)
		}},
		"minisign, old form": {string(text), func(b []byte) []byte { return minisign.Sign(private, b) }},
	}
}

// Of an image whose sum is in a list, the list has to be signed by the pinned key, and
// has to be the one that is signed.
func TestSignedLists(t *testing.T) {
	body := diskBytes(1, mib)
	list := []byte("d41d8cd98f00b204e9800998ecf8427e  image.raw\n" + strings.TrimPrefix(sumOf(body), "sha256:") + "  image.raw\n" + sum512([]byte("x")) + " *other.raw\n")
	all, stranger := signers(t), newGPG(t, "ed25519")
	for name, by := range all {
		t.Run(name, func(t *testing.T) {
			_, other, err := minisign.GenerateKey(rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			foreign := minisign.Sign(other, list)
			if strings.HasPrefix(name, "OpenPGP") {
				foreign = []byte(stranger.run(string(list), "--detach-sign"))
			}
			web := serve(t, nil)
			for what, test := range map[string]struct {
				list, signature []byte
				key             string
				kind            imprint.Kind
				text            string
			}{
				"right":             {list, by.sign(list), by.key, 0, ""},
				"of another list":   {list, by.sign([]byte("another")), by.key, imprint.Denied, "not signed by the key"},
				"list was changed":  {append(bytes.Clone(list), '\n'), by.sign(list), by.key, imprint.Denied, "not signed by the key"},
				"of a foreign key":  {list, foreign, by.key, imprint.Denied, "not signed by the key"},
				"not there":         {list, nil, by.key, imprint.NotFound, "no such file"},
				"empty":             {list, []byte{}, by.key, imprint.Denied, "not signed by the key"},
				"is a web page":     {list, []byte("<html>"), by.key, imprint.Denied, "not signed by the key"},
				"list has no such":  {[]byte(sum512(body) + "  another.raw\n"), by.sign([]byte(sum512(body) + "  another.raw\n")), by.key, imprint.Invalid, "no SHA-256 or SHA-512 of a file of that name"},
				"list has two":      {append(bytes.Clone(list), strings.Repeat("0", 64)+"  image.raw\n"...), by.sign(append(bytes.Clone(list), strings.Repeat("0", 64)+"  image.raw\n"...)), by.key, imprint.Invalid, "two different ones"},
				"key is none":       {list, by.sign(list), "hello", imprint.Denied, "neither an OpenPGP key"},
				"image is not that": {[]byte(sum512([]byte("y")) + "  image.raw\n"), by.sign([]byte(sum512([]byte("y")) + "  image.raw\n")), by.key, imprint.Invalid, "its SHA512 is"},
			} {
				web.files = map[string][]byte{"/d/image.raw": body, "/d/SUMS": test.list}
				if test.signature != nil {
					web.files["/d/SUMS.sig"] = test.signature
				}
				s, err := storeIn(t.TempDir(), 0).Open(t.Context(), imprint.Image{
					Source: web.URL + "/d/image.raw", Sums: web.URL + "/d/SUMS", Signature: web.URL + "/d/SUMS.sig", Key: test.key,
				}, image.OpenOptions{})
				if test.text == "" {
					if err != nil {
						t.Errorf("%s: %v", what, err)
						continue
					}
					holds(t, s, body)
					s.Close()
					continue
				}
				if err == nil {
					s.Close()
					t.Errorf("%s: it was taken for right", what)
				} else if imprint.KindOf(err) != test.kind || !strings.Contains(err.Error(), test.text) {
					t.Errorf("%s: %v: %v; want %v: %s", what, imprint.KindOf(err), err, test.kind, test.text)
				}
			}
		})
	}
}

// A list with its signature around it counts for what is signed, and not for what
// stands before or behind.
func TestClearsignedLists(t *testing.T) {
	g := newGPG(t, "ed25519")
	body := diskBytes(2, mib)
	line := sum512(body) + "  image.raw\n"
	signed := g.run(line, "--clearsign")
	bsd := g.run("SHA512 (image.raw) = "+sum512(body)+"\n", "--clearsign")
	dir := t.TempDir()
	path := filepath.Join(dir, "image.raw")
	for name, b := range map[string][]byte{"image.raw": body} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for what, test := range map[string]struct{ list, text string }{
		"right":        {signed, ""},
		"as BSD does":  {bsd, ""},
		"unsigned":     {line, "no signature around it"},
		"more behind":  {signed + line, "something follows its signature"},
		"more before":  {strings.Repeat("0", 128) + "  image.raw\n" + signed, ""},
		"changed":      {strings.Replace(signed, "image.raw", "imago.raw", 1), "not signed by the key"},
		"nothing here": {"", "no signature around it"},
	} {
		sums := filepath.Join(dir, "SHA512SUMS")
		if err := os.WriteFile(sums, []byte(test.list), 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := image.NewStore(image.Config{}).Open(t.Context(), imprint.Image{Source: "file:" + path, Sums: "file:" + sums, Key: g.key()}, image.OpenOptions{})
		switch {
		case err == nil && test.text == "":
			holds(t, s, body)
			s.Close()
		case err == nil:
			s.Close()
			t.Errorf("%s: it was taken for right", what)
		case test.text == "" || !strings.Contains(err.Error(), test.text):
			t.Errorf("%s: %v; want %q", what, err, test.text)
		}
	}
}

// An image may be signed itself; then what is written is what was signed.
func TestSignedImage(t *testing.T) {
	body := diskBytes(3, 3*mib/2)
	for name, by := range signers(t) {
		dir := t.TempDir()
		path := filepath.Join(dir, "image.raw")
		if err := os.WriteFile(path, body, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path+".sig", by.sign(body), 0o600); err != nil {
			t.Fatal(err)
		}
		m := imprint.Image{Source: "file:" + path, Signature: "file:" + path + ".sig", Key: by.key}
		s, err := image.NewStore(image.Config{}).Open(t.Context(), m, image.OpenOptions{})
		if name == "minisign, old form" {
			if err == nil || !strings.Contains(err.Error(), "old form") {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if len(s.Sums()) != 1 || s.Sums()[0] != sumOf(body) {
			t.Errorf("%s: it may have any of the sums %q", name, s.Sums())
		}
		s.Close()
		if err := os.WriteFile(path, body[1:], 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := image.NewStore(image.Config{}).Open(t.Context(), m, image.OpenOptions{}); imprint.KindOf(err) != imprint.Denied {
			t.Errorf("%s: of another image: %v", name, err)
		}
	}
}
