package host

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"imprint"
	"imprint/internal/tap"
)

// dropsEvery is how often it is looked at what the filter dropped at an interface,
// and dropsAtMost how often whoever asks makes the host look: it takes the kernel
// a millisecond.
const (
	dropsEvery  = time.Minute
	dropsAtMost = time.Second
)

// DropReasons are why a packet is dropped at a guest's interface, in the words of
// [Port] and of [Host.Dropped].
func DropReasons() []string { return slices.Sorted(maps.Keys(byReason(tap.Drops{}))) }

func byReason(d tap.Drops) map[string]uint64 {
	return map[string]uint64{
		"forged MAC": d.MAC, "forged ARP": d.ARP, "forged source address": d.Source, "foreign destination": d.Destination,
		"foreign port": d.Port, "neither ARP nor IP": d.Other, "not from imprint": d.Outbound,
	}
}

// forged reports whether a packet that was dropped for this reason pretended to
// come from somebody else. Everything else is what ordinary software sends, too.
func forged(reason string) bool { return strings.HasPrefix(reason, "forged ") }

// dropped is what was dropped at the interfaces of a host since it started.
type dropped struct {
	mu sync.Mutex
	m  map[string]uint64 // guarded by mu; by reason
}

func (d *dropped) add(reason string, packets uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.m == nil {
		d.m = map[string]uint64{}
	}
	d.m[reason] += packets
}

// Dropped returns how many packets were dropped at the guests' interfaces, by
// reason, since this host role began; it is up to a minute late.
func (h *Host) Dropped() map[string]uint64 {
	h.links.dropped.mu.Lock()
	defer h.links.dropped.mu.Unlock()
	return maps.Clone(h.links.dropped.m)
}

// watchDrops looks at the interface's counters until ctx ends.
func (n *nic) watchDrops(ctx context.Context) {
	tick := time.NewTicker(dropsEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			n.mu.Lock()
			n.countDrops()
			n.mu.Unlock()
		case <-ctx.Done():
			return
		}
	}
}

// countDrops reads the interface's counters, unless it did so a moment ago, and
// returns them by reason, without those that are zero. What is new is added to
// the host's, and put on the timeline if it was forged. It is called with mu held.
func (n *nic) countDrops() map[string]uint64 {
	if n.attachment == nil {
		return nil
	}
	asked := n.unit.host.c.Now()
	if asked.Sub(n.dropsRead).Abs() < dropsAtMost {
		return nonZero(n.drops)
	}
	n.dropsRead = asked
	d, err := n.attachment.Drops()
	if err != nil {
		n.unit.log.Debug("what was dropped at the guest's interface is not known", "error", err)
		return nil
	}
	now := byReason(d)
	for reason, packets := range now {
		fresh := packets - n.drops[reason]
		if packets < n.drops[reason] { // the interface went and came back
			fresh = packets
		}
		if fresh == 0 {
			continue
		}
		n.unit.host.links.dropped.add(reason, fresh)
		if forged(reason) {
			n.untold[reason] += fresh
		}
	}
	n.drops = now
	n.tellDrops()
	return nonZero(now)
}

func nonZero(counts map[string]uint64) map[string]uint64 {
	shown := maps.Clone(counts)
	maps.DeleteFunc(shown, func(_ string, packets uint64) bool { return packets == 0 })
	return shown
}

// tellDrops puts what was forged on the timeline, as often as a guest may make its
// host do that. It is called with mu held and does not block.
func (n *nic) tellDrops() {
	if len(n.untold) == 0 || !n.dropNotes.admit(n.unit.host.c.Now()) {
		return
	}
	var parts []string
	for _, reason := range slices.Sorted(maps.Keys(n.untold)) {
		parts = append(parts, fmt.Sprintf("%d %s", n.untold[reason], reason))
	}
	text := "dropped packets: " + strings.Join(parts, ", ")
	select {
	case n.dropReports <- text:
		clear(n.untold)
	default: // counted with the next
	}
}

// reportDrops passes what was dropped on until ctx ends.
func (n *nic) reportDrops(ctx context.Context) {
	for {
		select {
		case text := <-n.dropReports:
			snap, _ := n.unit.current()
			err := n.unit.host.c.Control.Report(ctx, imprint.Report{
				Instance: n.unit.id, Generation: snap.inst.Generation, Channel: imprint.LinkLocal, Kind: imprint.ReportRefused,
				Name: text, From: "the interface", Witness: n.unit.host.c.Name,
			})
			if err != nil && ctx.Err() == nil {
				n.unit.log.WarnContext(ctx, "not on the timeline", "what", text, "error", err)
			}
		case <-ctx.Done():
			return
		}
	}
}
