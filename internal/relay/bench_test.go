package relay

import (
	"fmt"
	"testing"

	"imprint"
	"imprint/internal/hostapi"
)

// BenchmarkReport is what a guest waits for before a value leaves, while the
// control plane is away: a file and a directory that are synced.
func BenchmarkReport(b *testing.B) {
	p := newPlane()
	p.set(errGone)
	r := start(b, b.TempDir(), p)
	for n := 0; b.Loop(); n++ {
		id := imprint.InstanceID(fmt.Sprintf("00000000-0000-4000-8000-%012d", n/maxPending))
		if err := r.Report(b.Context(), said(id, "read")); imprint.KindOf(err) == imprint.Exhausted && err != nil {
			b.Skip("the queue is full")
		} else if err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkInstance is an instance that comes down the stream and is put into the copy.
func BenchmarkInstance(b *testing.B) {
	p := newPlane()
	r := start(b, b.TempDir(), p)
	for n := 1; b.Loop(); n++ {
		id := imprint.InstanceID(fmt.Sprintf("00000000-0000-4000-8000-%012d", n))
		p.lines <- hostapi.Notice{Revision: int64(n), Instance: &hostapi.Instance{Revision: int64(n), Instance: *record(id, int64(n))}}
		<-r.notices
	}
}
