package store

import (
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"imprint"
)

// benchmarkStores runs bench over the kinds of store that need no network.
func benchmarkStores(b *testing.B, bench func(b *testing.B, s *Store)) {
	b.Run("memory", func(b *testing.B) { bench(b, openBench(b, OpenMemory())) })
	b.Run("embedded", func(b *testing.B) { bench(b, openBench(b, openEmbedded(b, b.TempDir()))) })
}

func openBench(b *testing.B, s *Store) *Store {
	b.Cleanup(func() {
		if err := s.Close(); err != nil {
			b.Error(err)
		}
	})
	return s
}

// benched numbers the instances of benchmarks, which may be repeated on one store.
var benched atomic.Int64

// BenchmarkUpdate moves instances on, each change with one event: half of an
// enrolment's work here. Parallel writers work on instances of their own.
func BenchmarkUpdate(b *testing.B) {
	benchmarkStores(b, func(b *testing.B, s *Store) {
		for _, writers := range []int{1, 32} {
			b.Run(fmt.Sprintf("writers=%d", writers), func(b *testing.B) {
				ids := make([]imprint.InstanceID, writers)
				for n := range ids {
					ids[n] = create(b, s, fmt.Sprintf("bench-%d", benched.Add(1)), func(i *imprint.Instance) {
						i.Spec.Host = "bench.example"
						i.Enrolment.Claim = &imprint.Claim{Key: keyID(n), PublicKey: make([]byte, 91)}
						i.Enrolment.Certificate = &imprint.Certificate{DER: make([]byte, 700)}
					}).ID
				}
				decide := to(imprint.Issued, imprint.EventIssued)
				parallel(b, writers, func(n int) {
					if _, err := s.Update(b.Context(), ids[n], decide); err != nil {
						b.Error(err)
					}
				})
			})
		}
	})
}

// BenchmarkInstance reads one instance.
func BenchmarkInstance(b *testing.B) {
	benchmarkStores(b, func(b *testing.B, s *Store) {
		id := create(b, s, "bench-read").ID
		b.ReportAllocs()
		for b.Loop() {
			if _, err := s.Instance(b.Context(), id); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// parallel does work b.N times, spread over workers that are numbered from 0.
func parallel(b *testing.B, workers int, work func(worker int)) {
	b.ReportAllocs()
	before := cpuTime(b)
	b.ResetTimer()
	var started atomic.Int64
	done := make(chan struct{})
	for w := range workers {
		go func() {
			for started.Add(1) <= int64(b.N) {
				work(w)
			}
			done <- struct{}{}
		}()
	}
	for range workers {
		<-done
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "op/s")
	b.ReportMetric(float64((cpuTime(b)-before).Nanoseconds())/1e3/float64(b.N), "cpu-µs/op")
}

// cpuTime returns how long this process has kept processors busy: unlike the
// time on the wall, what else the machine does does not count.
func cpuTime(b *testing.B) time.Duration {
	var use unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &use); err != nil {
		b.Fatal(err)
	}
	return time.Duration(use.Utime.Nano() + use.Stime.Nano())
}
