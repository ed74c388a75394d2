package ca

import (
	"bytes"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/json"
	"testing"
	"testing/fstest"

	"golang.org/x/mod/sumdb/note"

	"imprint"
)

func FuzzEnrolment(f *testing.F) {
	ext, err := Enrolment{imprint.TierHost, 3, imprint.VirtioSerial}.Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(ext.Value)
	f.Add([]byte{0x30, 0x00})
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := DecodeEnrolment(b)
		if err != nil {
			return
		}
		if again, err := e.Encode(); err != nil || !bytes.Equal(again.Value, b) {
			t.Errorf("%x is written as %x (%v)", b, again.Value, err)
		}
	})
}

func FuzzURI(f *testing.F) {
	f.Add(URI("imprint.example", "acme", "6f1c2a44-3b0e-4c0f-9d5e-8a1b2c3d4e5f", 3))
	f.Add("spiffe://a/tenant/b/instance/c/generation/01")
	f.Fuzz(func(t *testing.T, s string) {
		domain, who, err := ParseURI(s)
		if err == nil && URI(domain, who.Tenant, who.Instance, who.Generation) != s {
			t.Errorf("%q reads as %s %+v", s, domain, who)
		}
	})
}

func FuzzPublicKey(f *testing.F) {
	f.Add(spki(f))
	f.Add(marshalSPKI(f, ed25519.PublicKey(make([]byte, 32))))
	f.Fuzz(func(t *testing.T, b []byte) {
		pub, err := ParsePublicKey(b)
		if err != nil {
			return
		}
		if again, err := x509.MarshalPKIXPublicKey(pub); err != nil || !bytes.Equal(again, b) {
			t.Errorf("%x is written as %x (%v)", b, again, err)
		}
		if _, err := keyIdentifier(b); err != nil {
			t.Error(err)
		}
	})
}

func FuzzSSHHost(f *testing.F) {
	f.Add(testSSHHost)
	f.Add("ssh-rsa AAAA")
	f.Fuzz(func(t *testing.T, s string) {
		key, err := ParseSSHHost(s)
		if err != nil {
			return
		}
		if _, err := ParseSSHHost(authorizedKey(key)); err != nil {
			t.Errorf("%q is written as %q: %v", s, authorizedKey(key), err)
		}
	})
}

func FuzzEntry(f *testing.F) {
	c := newTestCA(f, testProfile())
	if _, err := issue(c.Authority, testGrant(f)); err != nil {
		f.Fatal(err)
	}
	data, err := c.log.entries[0].Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add([]byte{entryVersion, wireEndpoint})
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := DecodeEntry(b)
		if err != nil {
			return
		}
		if again, err := e.Encode(); err != nil || !bytes.Equal(again, b) {
			t.Errorf("%x is written as %x (%v)", b, again, err)
		}
	})
}

// Whatever is in the files of a log, its verification ends with an answer, and
// never says that another log than the signed one is good.
func FuzzVerifyLog(f *testing.F) {
	l := newTestLog(f)
	l.fill(f, 2)
	l.close(f)
	files := copyLog(f, l.fs())
	bundle, tile, state := files["tile/entries/000.p/2"].Data, files["tile/0/000.p/2"].Data, files[treeStateName].Data
	signed := files[checkpointName].Data
	f.Add(signed, state, bundle, tile)
	f.Add(signed, []byte(`{"size":9,"root":""}`), []byte{0, 1}, []byte{})
	f.Fuzz(func(t *testing.T, cp, st, b, ti []byte) {
		_, err := VerifyLog(fstest.MapFS{
			checkpointName:         {Data: cp},
			treeStateName:          {Data: st},
			"tile/entries/000.p/2": {Data: b},
			"tile/0/000.p/2":       {Data: ti},
		}, l.verifier, VerifyOptions{Live: true})
		same := bytes.Equal(cp, signed) && bytes.Equal(st, state) && bytes.Equal(b, bundle) && bytes.Equal(ti, tile)
		if (err == nil) != same {
			t.Errorf("error %v for files that are the signed ones: %v", err, same)
		}
	})
}

func FuzzCheckpoint(f *testing.F) {
	key, verifierKey, err := GenerateLogKey("server.example")
	if err != nil {
		f.Fatal(err)
	}
	signer, err := note.NewSigner(string(key.Reveal()))
	if err != nil {
		f.Fatal(err)
	}
	verifier, err := note.NewVerifier(verifierKey)
	if err != nil {
		f.Fatal(err)
	}
	good, err := note.Sign(&note.Note{Text: "imprint/server.example\n0\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n"}, signer)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := readCheckpoint(fstest.MapFS{checkpointName: {Data: b}}, verifier); err == nil && !bytes.Equal(b, good) {
			t.Errorf("%q passes", b)
		}
	})
}

// Material comes from a document that an administrator can edit.
func FuzzMaterial(f *testing.F) {
	c := newTestCA(f, testProfile())
	data, err := json.Marshal(c.material)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Fuzz(func(t *testing.T, b []byte) {
		var m Material
		if json.Unmarshal(b, &m) != nil {
			return
		}
		a, err := Open(m, c.keys, discard{})
		if err == nil && len(a.Bundle()) < 2 {
			t.Error("opened without CAs")
		}
	})
}
