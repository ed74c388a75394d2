package daemon

import "os"

// heapFloor is how much garbage may come together before it is collected, at
// least. Without it the collector runs when the heap has doubled, which a young
// server's, of some 20 MiB, does many times a second under load: a sixth of its
// work. The memory in use grows by this much and no further, unlike with GOGC.
const heapFloor = 64 << 20 // bytes

// raiseHeapFloor returns memory that counts as part of the heap for as long as
// it is kept. Nobody touches it, so the kernel never provides it. Whoever set the
// collector's own variables decides alone.
func raiseHeapFloor() []byte {
	if os.Getenv("GOGC") != "" || os.Getenv("GOMEMLIMIT") != "" {
		return nil
	}
	return make([]byte, heapFloor)
}
