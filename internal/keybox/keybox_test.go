package keybox_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"testing"

	"imprint"
	"imprint/internal/keybox"
)

var info = keybox.Info{Instance: "6f1d0c1e-7d0c-4f5e-9c39-5b1f4c1b7e11", Generation: 3, Name: "db-password"}

func newKey(t testing.TB, c elliptic.Curve) (*ecdsa.PrivateKey, []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(c, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key, spki(t, key.Public())
}

func spki(t testing.TB, pub crypto.PublicKey) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func TestOnlyTheHolderOpens(t *testing.T) {
	for _, curve := range []elliptic.Curve{elliptic.P256(), elliptic.P384()} {
		key, pub := newKey(t, curve)
		other, _ := newKey(t, curve)
		value := []byte("correct horse")
		box, err := keybox.Seal(pub, info, imprint.NewSecret(value))
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(box, value) || len(box) > len(value)+keybox.Overhead {
			t.Errorf("%s: box of %d bytes leaks or exceeds its overhead", curve.Params().Name, len(box))
		}
		if got, err := keybox.Open(key, info, box); err != nil || !bytes.Equal(got.Reveal(), value) {
			t.Errorf("%s: Open = %q, %v", curve.Params().Name, got.Reveal(), err)
		}
		if _, err := keybox.Open(other, info, box); imprint.KindOf(err) != imprint.Invalid {
			t.Errorf("%s: another key: %v", curve.Params().Name, err)
		}
		for name, wrong := range map[string]keybox.Info{
			"instance":   {"6f1d0c1e-7d0c-4f5e-9c39-5b1f4c1b7e12", info.Generation, info.Name},
			"generation": {info.Instance, info.Generation + 1, info.Name},
			"name":       {info.Instance, info.Generation, "other"},
		} {
			if _, err := keybox.Open(key, wrong, box); imprint.KindOf(err) != imprint.Invalid {
				t.Errorf("%s: wrong %s: %v", curve.Params().Name, name, err)
			}
		}
		for i := range box {
			bad := bytes.Clone(box)
			bad[i] ^= 1
			if _, err := keybox.Open(key, info, bad); err == nil {
				t.Fatalf("%s: opened with byte %d changed", curve.Params().Name, i)
			}
		}
	}
}

func TestKeysAndSizesThatCannotBeSealed(t *testing.T) {
	pub, _, _ := ed25519.GenerateKey(rand.Reader)
	if _, err := keybox.Seal(spki(t, pub), info, imprint.NewSecret([]byte("x"))); imprint.KindOf(err) != imprint.Invalid || imprint.HintOf(err) == "" {
		t.Errorf("Ed25519: %v", err)
	}
	_, p256 := newKey(t, elliptic.P256())
	if _, err := keybox.Seal(p256, info, imprint.NewSecret(make([]byte, keybox.MaxValue+1))); imprint.KindOf(err) != imprint.Exhausted {
		t.Errorf("oversize: %v", err)
	}
}

func FuzzOpen(f *testing.F) {
	key, pub := newKey(f, elliptic.P256())
	box, err := keybox.Seal(pub, info, imprint.NewSecret([]byte("x")))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(box)
	f.Add([]byte{1})
	f.Add(bytes.Repeat([]byte{4}, 100))
	f.Fuzz(func(t *testing.T, b []byte) {
		if v, err := keybox.Open(key, info, b); err == nil && !bytes.Equal(b, box) {
			t.Errorf("opened a forged box: %q", v.Reveal())
		}
	})
}

func BenchmarkSeal(b *testing.B) {
	_, pub := newKey(b, elliptic.P256())
	v := imprint.NewSecret(make([]byte, 32))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := keybox.Seal(pub, info, v); err != nil {
			b.Fatal(err)
		}
	}
}
