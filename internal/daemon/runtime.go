package daemon

import (
	"os"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// How much garbage may come together before it is collected, at least: a
// share of the machine's memory, within bounds. Without it the collector runs when the
// heap has doubled, which a young server's, of some 20 MiB, does many times a
// second under load: a sixth of its work. The memory in use grows by this much
// and no further, unlike with GOGC.
const (
	heapFloorShare = 32
	minHeapFloor   = 32 << 20 // bytes
	maxHeapFloor   = 1 << 30  // bytes
)

// raiseHeapFloor returns memory that counts as part of the heap for as long as
// it is kept. Nobody touches it, so the kernel never provides it. Whoever set the
// collector's own variables decides alone.
func raiseHeapFloor() []byte {
	if os.Getenv("GOGC") != "" || os.Getenv("GOMEMLIMIT") != "" {
		return nil
	}
	var machine unix.Sysinfo_t
	if err := unix.Sysinfo(&machine); err != nil {
		return nil
	}
	return make([]byte, min(max(machine.Totalram*uint64(machine.Unit)/heapFloorShare, minHeapFloor), maxHeapFloor))
}

// addProcessor lets one goroutine more run at a time than there are processors.
// A thread that waits for the disk keeps its turn until the scheduler's monitor
// notices, and on a small machine the store's log waits so for a third of the
// time. Whoever set GOMAXPROCS decides alone.
var addProcessor = sync.OnceFunc(func() {
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + 1)
	}
})
