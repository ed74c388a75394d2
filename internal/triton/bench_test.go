package triton_test

import (
	"bytes"
	"fmt"
	"net"
	"testing"

	"golang.org/x/time/rate"

	"imprint/internal/triton"
)

var sizes = []int{32, 1 << 10, triton.MaxValue}

func BenchmarkAppendFrame(b *testing.B) {
	for _, size := range sizes {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			f := triton.Frame{ID: 0xdc4fae17, Code: triton.Success, Payload: bytes.Repeat([]byte("x"), size)}
			buf := make([]byte, 0, triton.MaxLine+1)
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				buf, _ = triton.AppendFrame(buf[:0], f)
			}
		})
	}
}

func BenchmarkDecodeFrame(b *testing.B) {
	for _, size := range sizes {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			line := []byte(frame(b, 0xdc4fae17, triton.Success, string(bytes.Repeat([]byte("x"), size))))
			line = line[:len(line)-1]
			buf := make([]byte, 0, triton.MaxValue)
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				if _, ok := triton.DecodeFrame(line, buf); !ok {
					b.Fatal("not whole")
				}
			}
		})
	}
}

// BenchmarkGet is a round trip over a pipe in memory.
func BenchmarkGet(b *testing.B) {
	for _, size := range sizes {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			guest, server := net.Pipe()
			done := make(chan error, 1)
			h := newMemory("key", string(bytes.Repeat([]byte("x"), size)))
			go func() {
				done <- triton.Serve(b.Context(), server, h, triton.Options{Requests: rate.Inf, Bytes: rate.Inf})
			}()
			c := triton.NewClient(triton.Once(guest), triton.ClientOptions{})
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := c.Get(b.Context(), "key"); err != nil {
					b.Fatal(err)
				}
			}
			c.Close()
			<-done
		})
	}
}
