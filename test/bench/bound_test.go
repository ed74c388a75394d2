//go:build bench

package bench

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"errors"
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
	verify := perOperation(t, func() error {
		if !ecdsa.VerifyASN1(&key.PublicKey, digest[:], sig) {
			return errors.New("does not verify")
		}
		return nil
	})
	sign := perOperation(t, func() error {
		_, err := ecdsa.SignASN1(rand.Reader, key, digest[:])
		return err
	})
	file, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	page := make([]byte, 4<<10)
	sync := perOperation(t, func() error {
		if _, err := file.Write(page); err != nil {
			return err
		}
		return file.Sync()
	})
	cpu := verify + 2*sign
	fmt.Fprintf(w, "bound: one verification %.0f µs + two signatures of %.0f µs = %.0f µs of CPU; a synced write takes %.2f ms\n\n",
		us(verify), us(sign), us(cpu), ms(sync))
}

// perOperation returns how long f takes, on average over half a second.
func perOperation(t testing.TB, f func() error) time.Duration {
	t.Helper()
	began, n := time.Now(), 0
	for ; time.Since(began) < time.Second/2; n++ {
		if err := f(); err != nil {
			t.Fatal(err)
		}
	}
	return time.Since(began) / time.Duration(n)
}

func us(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }
