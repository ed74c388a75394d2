package guest

import (
	"time"

	"imprint"
)

const (
	// clockSlack is by how much a clock may be behind before it is moved.
	clockSlack = time.Second
	// aheadOfHost is by how much a clock may be ahead of the time that a live
	// channel tells, before the agent stops believing the clock.
	aheadOfHost = 24 * time.Hour
	// aheadOfPayload is the same for a payload, which may have been rendered
	// long before it is read.
	aheadOfPayload = 10 * 365 * 24 * time.Hour
)

// clock is the time that the agent works with: the machine's, or better.
type clock struct {
	system func() time.Time
	// set moves the machine's clock.
	set func(time.Time) error
	// offset is added to the machine's clock where that is known to be wrong and
	// could not, or must not, be moved.
	offset time.Duration
}

func systemClock() *clock { return &clock{system: time.Now, set: setSystemTime} }

func (c *clock) now() time.Time { return c.system().Add(c.offset) }

// learn is told that it is at least t; live says that it is t just now. It moves
// the machine's clock forward and never backward: certificates, tickets and
// logs of the machine may depend on it by now.
func (c *clock) learn(t time.Time, live bool, console *Console) {
	system := c.system()
	limit := aheadOfPayload
	if live {
		limit = aheadOfHost
	}
	switch {
	case system.Before(t.Add(-clockSlack)):
		console.Say("the clock says %s, but it is at least %s: moving it forward", stamp(system), stamp(t))
		if err := c.set(t); err != nil {
			console.Say("cannot set the clock (%v): working with the right time, but the machine's clock stays wrong", err)
			c.offset = t.Sub(system)
			return
		}
		c.offset = 0
	case system.After(t.Add(limit)):
		console.About("clock", "it says %s, far ahead of imprint's %s; it is never moved backward. "+
			"Going on with imprint's time; set the clock by hand, or other programs will reject valid certificates", stamp(system), stamp(t))
		c.offset = t.Sub(system)
	default:
		c.offset = 0
	}
}

// parseTime reads the value of imprint:time.
func parseTime(b []byte) (time.Time, error) {
	t, err := time.Parse(time.RFC3339, string(b))
	if err != nil {
		return time.Time{}, imprint.Errorf(imprint.Invalid, "read", "the host's time", "%w", err)
	}
	if t.Year() > imprint.MaxYear {
		return time.Time{}, imprint.Errorf(imprint.Invalid, "read", "the host's time", "the year %d", t.Year())
	}
	return t, nil
}

func stamp(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 MST") }
