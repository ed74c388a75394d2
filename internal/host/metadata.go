package host

import (
	"cmp"
	"context"
	"fmt"
	"net/url"
	"time"

	"imprint"
	"imprint/internal/dialect"
	"imprint/internal/metadata"
)

// bootWindow is how long stock software may read user data from the moment when
// something was first read, if neither the instance nor its server says.
const bootWindow = imprint.Duration(time.Hour)

// metadataGuest is an instance as a [metadata.Server] sees it over one of the
// instance's channels, with that server.
type metadataGuest struct {
	unit     *unit
	channel  imprint.Channel
	server   *metadata.Server
	accesses chan metadata.Access // on their way to the control plane
}

// maxAccesses is how many accesses may wait to be reported; what comes then is
// only in the log.
const maxAccesses = 64

// newMetadataGuest returns the instance with a server that has what c says
// besides.
func newMetadataGuest(u *unit, kind imprint.ChannelKind, c metadata.Config) (*metadataGuest, error) {
	channel, _ := imprint.ChannelOf(kind)
	g := &metadataGuest{unit: u, channel: channel, accesses: make(chan metadata.Access, maxAccesses)}
	c.Guest, c.Reporter, c.Inbox, c.Native, c.Logger, c.Now = g, g, g, g, u.log, u.host.c.Now
	c.SourcePorts = channel.SourcePorts
	var err error
	g.server, err = metadata.New(c)
	return g, err
}

// Snapshot implements [metadata.Guest].
func (g *metadataGuest) Snapshot() *metadata.Snapshot {
	snap, _ := g.unit.current()
	if snap == nil {
		return nil
	}
	return snap.network
}

// network renders what the guest may read over HTTP.
func (u *unit) network(inst *imprint.Instance, facts dialect.Facts) *metadata.Snapshot {
	e := &inst.Enrolment
	options := metadata.Options{TokensOnly: inst.Spec.IMDSv2Only, Boot: metadata.Boot{Home: !e.HomeAt.IsZero()}}
	if !e.ServedAt.IsZero() {
		options.Boot.Ends = e.ServedAt.Add(time.Duration(cmp.Or(inst.Spec.Policy.BootWindow, facts.BootWindow, bootWindow)))
	}
	return metadata.NewSnapshot(inst, options,
		dialect.OpenStack(inst, facts, u.seed), dialect.EC2(inst, facts), dialect.NoCloud(inst), dialect.Ganeti(inst, facts))
}

// Report implements [metadata.Reporter].
func (g *metadataGuest) Report(ctx context.Context, a metadata.Access) {
	select {
	case g.accesses <- a:
	default:
		g.unit.log.WarnContext(ctx, "not on the timeline: the control plane is too slow", "what", a.Name, "from", g.from(a.Origin), "refused", a.Refused)
	}
}

// report passes accesses on until ctx ends.
func (g *metadataGuest) report(ctx context.Context) {
	for {
		select {
		case a := <-g.accesses:
			kind, name := imprint.ReportServed, a.Name
			if a.Refused != "" {
				kind, name = imprint.ReportRefused, a.Name+": "+a.Refused
			}
			if err := g.tell(ctx, kind, name, a.Origin, nil); err != nil && ctx.Err() == nil {
				g.unit.log.WarnContext(ctx, "not on the timeline", "what", a.Name, "from", g.from(a.Origin), "refused", a.Refused, "error", err)
			}
		case <-ctx.Done():
			return
		}
	}
}

// from says who asked, for people.
func (g *metadataGuest) from(o metadata.Origin) string {
	switch {
	case !g.channel.SourcePorts:
		return "any process, or whoever forges its address"
	case o.Root():
		return fmt.Sprintf("root, source port %d", o.Port)
	}
	return fmt.Sprintf("any process, source port %d", o.Port)
}

// tell reports for the generation that is served now.
func (g *metadataGuest) tell(ctx context.Context, kind imprint.ReportKind, name string, o metadata.Origin, data []byte) error {
	snap, _ := g.unit.current()
	return g.unit.host.c.Control.Report(ctx, imprint.Report{
		Instance: g.unit.id, Generation: snap.inst.Generation, Channel: g.channel.Kind, Kind: kind,
		Name: name, Data: data, From: g.from(o), Witness: g.unit.host.c.Name,
	})
}

// PostPassword implements [metadata.Inbox].
func (g *metadataGuest) PostPassword(ctx context.Context, o metadata.Origin, text []byte) error {
	if err := g.tell(ctx, imprint.ReportPassword, "", o, text); err != nil {
		return err
	}
	g.unit.shown(ctx, func(e *imprint.Enrolment) bool { return e.Password != nil })
	return nil
}

// PhoneHome implements [metadata.Inbox]. What is in the form is not kept: nothing
// in it is proven.
func (g *metadataGuest) PhoneHome(ctx context.Context, o metadata.Origin, _ url.Values) error {
	if err := g.tell(ctx, imprint.ReportHome, "", o, nil); err != nil {
		return err
	}
	g.unit.shown(ctx, func(e *imprint.Enrolment) bool { return !e.HomeAt.IsZero() })
	return nil
}

// request returns a session for one request, whose reply only o's readers see.
func (g *metadataGuest) request(o metadata.Origin) (*session, *snapshot, error) {
	s := &session{unit: g.unit, channel: g.channel, log: g.unit.log.With("channel", g.channel.Kind)}
	if s.channel.SourcePorts {
		s.channel = s.channel.From(o.Readers)
	}
	snap, err := s.now()
	return s, snap, err
}

// Get implements [metadata.Native].
func (g *metadataGuest) Get(ctx context.Context, o metadata.Origin, key string) ([]byte, error) {
	s, snap, err := g.request(o)
	if err != nil {
		return nil, err
	}
	value, err := s.native(ctx, snap, key)
	s.complain(ctx, key, err)
	return value, err
}

// Put implements [metadata.Native].
func (g *metadataGuest) Put(ctx context.Context, o metadata.Origin, key string, value []byte) error {
	s, snap, err := g.request(o)
	if err != nil {
		return err
	}
	err = s.put(ctx, snap, key, value)
	s.complain(ctx, key, err)
	return err
}

// Delete implements [metadata.Native].
func (g *metadataGuest) Delete(ctx context.Context, o metadata.Origin, key string) error {
	s, snap, err := g.request(o)
	if err != nil {
		return err
	}
	err = s.delete(snap, key)
	s.complain(ctx, key, err)
	return err
}

// pipes are the instance's message queues as Ganeti's guests see them.
type pipes struct{ unit *unit }

// pipeName is the name of the only pipe, which is also the one without a name.
const pipeName = "default"

func (p pipes) check(name string) error {
	if name != pipeName {
		return imprint.Errorf(imprint.NotFound, "use", "pipe "+name, "there is only %q", pipeName)
	}
	return nil
}

// Next implements [metadata.Pipes].
func (p pipes) Next(ctx context.Context, name string) ([]byte, error) {
	if err := p.check(name); err != nil {
		return nil, err
	}
	message, err := p.unit.down.wait(ctx)
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	return message, err
}

// Acknowledge implements [metadata.Pipes].
func (p pipes) Acknowledge(_ context.Context, name string, d imprint.Digest) error {
	if err := p.check(name); err != nil {
		return err
	}
	p.unit.down.acknowledge(d)
	return nil
}

// Write implements [metadata.Pipes].
func (p pipes) Write(_ context.Context, name string, message []byte) error {
	if err := p.check(name); err != nil {
		return err
	}
	return p.unit.up.put(message)
}
