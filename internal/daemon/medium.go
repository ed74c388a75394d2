package daemon

import (
	"context"
	"crypto/rand"
	"time"

	"imprint"
	"imprint/api"
	"imprint/internal/dialect"
	"imprint/internal/media"
)

// Medium renders what a medium of the instance holds, as far as all who can read
// the medium, and what the guest's software makes of it, may read that; and puts
// on record that by got it.
func (c *credentials) Medium(ctx context.Context, id imprint.InstanceID, what api.MediumRequest, by string) (*api.Medium, error) {
	drive, err := dialect.DriveOf(what.Dialect)
	if err != nil {
		return nil, err
	}
	carrier, err := media.CarrierOf(what.Carrier)
	if err != nil {
		return nil, err
	}
	if !drive.Fits(carrier.Form) {
		return nil, imprint.Errorf(imprint.Invalid, "put", drive.Name+" on "+carrier.Name, "nothing would look for it there").
			WithHint("see what fits: imprint media list")
	}
	inst, err := c.store.Instance(ctx, id)
	if err != nil {
		return nil, err
	}
	f, err := c.facts.of(inst.Spec.Tenant)
	if err != nil {
		return nil, err
	}
	in := dialect.DriveInput{
		Readers: carrier.Readers | drive.Readers, Form: carrier.Form,
		Closed: inst.Enrolment.State == imprint.Closed || !inst.Enrolment.State.Open(),
		Seed:   make([]byte, dialect.SeedSize), MergeVendor: what.MergeVendor, AdminPassword: what.AdminPassword, UserPasswords: what.UserPasswords,
	}
	rand.Read(in.Seed) // never fails
	m := &api.Medium{Label: drive.Label, Time: inst.Updated, Token: drive.Payload && imprint.MayHoldToken(in.Readers)}
	if what.TTL != 0 && !m.Token {
		return nil, imprint.Errorf(imprint.Invalid, "put", drive.Name+" on "+carrier.Name, "it gets no one-time token, whose life could be chosen")
	}
	if drive.Payload {
		m.CheckIn = f.CheckIn
		if in.Payload, err = dialect.Payload(inst, f, c.now()).Encode(); err != nil {
			return nil, err
		}
		if m.Token {
			// A token replaces the one before, so what cannot be written makes none.
			if err := render(m, drive, carrier, inst, f, in); err != nil {
				return nil, err
			}
			payload, err := c.Payload(ctx, id, time.Duration(what.TTL))
			if err != nil {
				return nil, err
			}
			in.Payload = payload.Reveal()
		}
	}
	if err := render(m, drive, carrier, inst, f, in); err != nil {
		return nil, err
	}
	if drive.Payload && !m.Token {
		m.Omitted = append(m.Omitted, "one-time token")
	}
	m.Number, err = c.engine.GiveOut(ctx, id, imprint.Medium{
		Generation: inst.Generation, Dialect: drive.Name, Carrier: carrier.Name, Token: m.Token, Digest: imprint.DigestOfFiles(m.FileBytes()), Attended: what.Attended,
	}, by)
	if err != nil {
		return nil, err
	}
	return m, nil
}

// render puts into m what the drive holds, if it can be written on the carrier.
func render(m *api.Medium, drive dialect.Drive, carrier media.Carrier, inst *imprint.Instance, f dialect.Facts, in dialect.DriveInput) error {
	view, omitted, err := drive.Render(inst, f, in)
	if err != nil {
		return err
	}
	v := &media.Volume{Label: m.Label, Time: m.Time, Files: map[string][]byte{}}
	m.Omitted, m.Unsupported, m.Files = omitted, drive.Unsupported(inst, in), map[string]imprint.Secret{}
	for path, value := range view.Values {
		v.Files[path] = value.Data
		m.Files[path] = imprint.NewSecret(value.Data)
	}
	return carrier.Check(v)
}

// SettleMedium records what became of a medium.
func (c *credentials) SettleMedium(ctx context.Context, id imprint.InstanceID, number uint32, state imprint.MediumState, detail, by string) error {
	return c.engine.SettleMedium(ctx, id, number, state, detail, by)
}
