package host

import (
	"sync"
	"time"
)

// Limits on the lines that one guest makes its host log: so many at once, and
// one more each time.
const (
	complaintBurst = 20
	complaintEvery = 5 * time.Minute
)

// complaints counts lines of the log that a guest has caused.
type complaints struct {
	mu    sync.Mutex
	used  int       // of the burst
	since time.Time // when used was last reduced
}

// admit reports whether another line may be logged.
func (c *complaints) admit(now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.used == 0 || now.Before(c.since) {
		c.since = now
	}
	earned := min(int(now.Sub(c.since)/complaintEvery), c.used)
	c.used -= earned
	c.since = c.since.Add(time.Duration(earned) * complaintEvery)
	if c.used >= complaintBurst {
		return false
	}
	c.used++
	return true
}
