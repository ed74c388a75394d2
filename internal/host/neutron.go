package host

import (
	"context"
	"slices"
	"sync"

	"imprint"
	"imprint/internal/metadata"
)

// Proxied returns the server of an instance that has the channel neutron, for
// requests that came through Neutron's metadata agent. instance is its
// identifier and project its tenant, as the agent says; nobody in the guest is
// root there. It fails with kind [imprint.NotFound] if there is no such instance
// on this host, or if it is another tenant's or lacks the channel, and with kind
// [imprint.Unavailable] as long as that is not known. It implements
// [metadata.ProxiedGuests].
func (h *Host) Proxied(_ context.Context, instance, project string) (*metadata.Server, error) {
	const op = "find"
	unavailable := imprint.Errorf(imprint.Unavailable, op, "instance", "its record is not here yet")
	u, err := h.known(op, imprint.InstanceID(instance))
	if err != nil {
		select {
		case <-h.links.listed:
			return nil, err
		default:
			return nil, unavailable
		}
	}
	u.mu.Lock()
	g, snap := u.proxied, u.snapshot
	u.mu.Unlock()
	switch {
	case snap == nil:
		return nil, unavailable
	case string(snap.inst.Spec.Tenant) != project, !slices.Contains(snap.inst.Spec.Channels, imprint.Neutron):
		return nil, imprint.Errorf(imprint.NotFound, op, instance, "no instance of this project that is behind Neutron")
	case g == nil: // the record was heard a moment ago
		return nil, unavailable
	}
	return g.server, nil
}

// proxy makes the instance one that [Host.Proxied] finds.
func (u *unit) proxy() *way {
	p := u.port(imprint.Neutron)
	g, err := newMetadataGuest(u, imprint.Neutron, func(_ *metadataGuest, c *metadata.Config) { c.Proxied = true })
	if err != nil { // a fault of this program
		p.trouble(err)
		return &way{stop: func() {}}
	}
	if !u.host.c.Neutron {
		p.trouble(imprint.Errorf(imprint.Unavailable, "serve", "channel "+string(imprint.Neutron), "nothing listens for Neutron's agents on this host"))
	}
	ctx, cancel := context.WithCancel(u.ctx)
	var done sync.WaitGroup
	done.Go(func() { g.report(ctx) })
	u.runs.Go(done.Wait)
	u.setProxied(g)
	return &way{stop: func() {
		u.setProxied(nil)
		cancel()
		done.Wait()
	}}
}

func (u *unit) setProxied(g *metadataGuest) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.proxied = g
}
