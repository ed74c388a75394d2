//go:build bench

package bench

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// bound prints what an enrolment cannot do without on this machine: one ECDSA
// verification of the request and two signatures, over the certificate and the
// log's checkpoint, and a synced write, which many enrolments share.
func bound(t testing.TB, w io.Writer) {
	t.Helper()
	key := newKey(t)
	digest := sha256.Sum256([]byte("a certificate request"))
	sig, err := ecdsa.SignASN1(rand.Reader, key, digest[:])
	if err != nil {
		t.Fatal(err)
	}
	verify := perOperation(func(b *testing.B) {
		for b.Loop() {
			if !ecdsa.VerifyASN1(&key.PublicKey, digest[:], sig) {
				b.Fatal("does not verify")
			}
		}
	})
	sign := perOperation(func(b *testing.B) {
		for b.Loop() {
			if _, err := ecdsa.SignASN1(rand.Reader, key, digest[:]); err != nil {
				b.Fatal(err)
			}
		}
	})
	file, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	page := make([]byte, 4<<10)
	sync := perOperation(func(b *testing.B) {
		for b.Loop() {
			if _, err := file.Write(page); err != nil {
				b.Fatal(err)
			}
			if err := file.Sync(); err != nil {
				b.Fatal(err)
			}
		}
	})
	cpu := verify + 2*sign
	fmt.Fprintf(w, "bound: one verification %.0f µs + two signatures of %.0f µs = %.0f µs of CPU; a synced write takes %.2f ms\n\n",
		us(verify), us(sign), us(cpu), ms(sync))
}

func perOperation(f func(*testing.B)) time.Duration {
	return time.Duration(testing.Benchmark(f).NsPerOp())
}

func us(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }
