package image

import (
	"encoding/hex"
	"testing"
)

// FuzzSums: what a list of sums says of a file is a sum of the right length.
func FuzzSums(f *testing.F) {
	f.Add([]byte("60303ae22b998861bce3b28f33eec1be758a213c86c93c076dbe9f558c11c752  image.raw\n"), "image.raw")
	f.Add([]byte("SHA256 (image.raw) = 60303ae22b998861bce3b28f33eec1be758a213c86c93c076dbe9f558c11c752\r\n"), "image.raw")
	f.Add([]byte("# comment\n\n *./a/image.raw\nd41d8cd98f00b204e9800998ecf8427e *image.raw"), "image.raw")
	f.Fuzz(func(t *testing.T, list []byte, name string) {
		s, err := lookUp(list, name)
		if err != nil {
			return
		}
		if again, err := parseSum(s.String()); err != nil || again.String() != s.String() {
			t.Fatalf("%s is not %s: %v", again, s, err)
		}
		if n := len(hex.EncodeToString(s.value)); n != 64 && n != 128 {
			t.Fatalf("a sum of %d digits", n)
		}
	})
}

// FuzzSignature: no bytes are a signature by a key that did not make one.
func FuzzSignature(f *testing.F) {
	f.Add([]byte("list"), []byte("-----BEGIN PGP SIGNATURE-----\n\niHUEABYKAB0=\n=AAAA\n-----END PGP SIGNATURE-----\n"))
	f.Add([]byte("-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA512\n\nx\n-----BEGIN PGP SIGNATURE-----\n\niHUE\n-----END PGP SIGNATURE-----\n"), []byte(nil))
	f.Add([]byte("list"), []byte("untrusted comment: x\nRUQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\ntrusted comment: y\nAAAA\n"))
	// The key of minisign's own documentation, whose secret half nobody here has.
	keys := []string{"RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3"}
	f.Fuzz(func(t *testing.T, list, signature []byte) {
		for _, key := range keys {
			if _, err := signedList(key, list, signature); err == nil {
				t.Fatalf("%q is signed by %q", list, signature)
			}
		}
	})
}
