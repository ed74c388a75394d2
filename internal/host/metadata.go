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

// newMetadataGuest returns the instance with a server that has what more adds.
func newMetadataGuest(u *unit, kind imprint.ChannelKind, more func(*metadataGuest, *metadata.Config)) (*metadataGuest, error) {
	channel, _ := imprint.ChannelOf(kind)
	g := &metadataGuest{unit: u, channel: channel, accesses: make(chan metadata.Access, maxAccesses)}
	c := metadata.Config{Guest: g, Reporter: g, Inbox: g, Native: g, Logger: u.log, Now: u.host.c.Now, SourcePorts: channel.SourcePorts}
	more(g, &c)
	var err error
	g.server, err = metadata.New(c)
	return g, err
}

// Snapshot implements [metadata.Guest].
func (g *metadataGuest) Snapshot() *metadata.Snapshot {
	snap, _ := g.unit.current()
	if snap == nil || snap.network == nil {
		return nil
	}
	return snap.network()
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

// guestPipes are the instance's pipes as Ganeti's guests see them; they implement
// [metadata.Pipes].
type guestPipes struct{ *metadataGuest }

func (g guestPipes) Next(ctx context.Context, name string) ([]byte, string, error) {
	p, err := g.unit.pipe(name)
	if err != nil {
		return nil, "", err
	}
	data, receipt := p.down.wait(ctx)
	return data, receipt, nil
}

func (g guestPipes) Take(_ context.Context, name, receipt string) error {
	p, err := g.unit.pipe(name)
	if err != nil {
		return err
	}
	g.unit.traffic.add(g.unit, passage{name, toMachine, taken, g.channel.Kind, "root of the machine"}, p.down.take(receipt))
	return nil
}

func (g guestPipes) Write(_ context.Context, name, id string, data []byte) error {
	p, err := g.unit.pipe(name)
	if err != nil {
		return err
	}
	size, err := p.up.put(data, id)
	g.unit.traffic.add(g.unit, passage{name, fromMachine, written, g.channel.Kind, "root of the machine"}, size)
	return err
}
