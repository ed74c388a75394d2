package daemon

import (
	"context"
	"iter"
	"log/slog"
	"slices"
	"strings"
	"time"

	"imprint"
	"imprint/api"
	"imprint/internal/dialect"
	"imprint/internal/enrol"
	"imprint/internal/host"
	"imprint/internal/server"
	"imprint/internal/store"
)

// The types in this file are what the control API works with: each joins two or
// three parts that know nothing of each other.

// registry creates and deletes instances.
type registry struct {
	settings *Settings
	store    *store.Store
	engine   *enrol.Engine
	values   *values
	logger   *slog.Logger
	now      func() time.Time
}

// Create reserves spec for its tenant, as id or, if that is "", as one that is
// drawn, and stores the private values with it.
func (r *registry) Create(ctx context.Context, id imprint.InstanceID, spec imprint.Spec, private map[string]imprint.Secret, by string) (*imprint.Instance, error) {
	tenant, err := r.settings.Tenant(spec.Tenant)
	if err != nil {
		return nil, err
	}
	inst, change, err := enrol.Reserve(spec, tenant, r.now())
	if err != nil {
		return nil, err
	}
	if id != "" {
		inst.ID = id
	}
	attribute(&change, by)
	err = r.values.put(inst.ID, private, func(sealed map[string][]byte) error {
		return r.store.Create(ctx, &inst, sealed, change)
	})
	if err != nil {
		return nil, err
	}
	return &inst, nil
}

// CheckID fails as Create would because of i's ID.
func (r *registry) CheckID(ctx context.Context, i *imprint.Instance) error {
	return r.store.CheckID(ctx, i)
}

// Delete revokes what was issued and forgets the instance.
func (r *registry) Delete(ctx context.Context, id imprint.InstanceID, by string) error {
	err := r.store.Delete(ctx, id, func(i *imprint.Instance) (imprint.Change, error) {
		return enrol.Delete(i, r.now()), nil
	})
	if err == nil {
		r.values.secrets.Drop(id)
		r.logger.InfoContext(ctx, "deleted", "instance", id, "by", by)
	}
	return err
}

// attribute notes on every event who asked for it.
func attribute(c *imprint.Change, by string) {
	for i := range c.Events {
		if c.Events[i].Detail == nil {
			c.Events[i].Detail = map[string]string{}
		}
		c.Events[i].Detail["by"] = by
	}
}

// instances reads the store for the control API.
type instances struct{ *store.Store }

func (s instances) List(ctx context.Context, q api.Query) ([]*imprint.Instance, string, error) {
	return s.Store.List(ctx, store.Query{Tenant: q.Tenant, Host: q.Host, After: q.After, Limit: q.Limit})
}

// watcher gives the store's notices one by one: the instance first, then its events.
type watcher struct{ store *store.Store }

func (w watcher) Watch(ctx context.Context, scope server.Scope, from int64) iter.Seq2[server.Notice, error] {
	return func(yield func(server.Notice, error) bool) {
		after := max(from-1, 0) // the store tells what came after a revision
		for n, err := range w.store.Watch(ctx, store.Scope(scope), after) {
			if err != nil {
				yield(server.Notice{}, err)
				return
			}
			for _, out := range split(n) {
				if !yield(out, nil) {
					return
				}
			}
		}
	}
}

func split(n store.Notice) []server.Notice {
	var out []server.Notice
	if n.Instance != nil || n.Deleted != "" {
		out = append(out, server.Notice{Revision: n.Revision, Relist: n.Relist, Instance: n.Instance, Deleted: n.Deleted})
	}
	for i := range n.Events {
		out = append(out, server.Notice{Revision: n.Revision, Event: &n.Events[i]})
	}
	return out
}

// placements gives the host role the instances that are placed on it.
type placements struct {
	store *records
	host  imprint.HostName
}

func (p placements) Watch(ctx context.Context) iter.Seq2[host.Notice, error] {
	return func(yield func(host.Notice, error) bool) {
		if !yield(host.Notice{Rewound: true}, nil) { // the cluster may have been restored meanwhile
			return
		}
		for n, err := range p.store.Watch(ctx, store.Scope{Host: p.host}, 0) {
			out := host.Notice{Instance: n.Instance, Relist: n.Relist, Synced: n.Synced, Deleted: n.Deleted}
			if !yield(out, err) || err != nil {
				return
			}
		}
	}
}

// params puts each sort of parameter where it belongs; secret ones belong to the hosts.
type params struct {
	*values
	*hosts
	store *store.Store
}

// PutPublic changes the value in the spec.
func (p *params) PutPublic(ctx context.Context, id imprint.InstanceID, name, value, by string) error {
	_, err := p.store.Update(ctx, id, func(i *imprint.Instance) (imprint.Change, error) {
		for n := range i.Spec.Params {
			if param := &i.Spec.Params[n]; param.Name == name && param.Visibility == imprint.Public {
				param.Value = value
				change := changedParam(name, by)
				change.WakeAt = enrol.WakeAt(i)
				return change, nil
			}
		}
		return imprint.Change{}, imprint.Errorf(imprint.NotFound, "set", "parameter "+name, "the instance has no such public parameter")
	})
	return err
}

// PutPrivate seals the value and stores it.
func (p *params) PutPrivate(ctx context.Context, id imprint.InstanceID, name string, value imprint.Secret, by string) error {
	err := p.put(id, map[string]imprint.Secret{name: value}, func(sealed map[string][]byte) error {
		return p.values.store.PutSealedParam(ctx, id, name, sealed[name])
	})
	if err != nil {
		return err
	}
	_, err = p.store.Update(ctx, id, func(*imprint.Instance) (imprint.Change, error) {
		c := changedParam(name, by)
		c.Keep = true
		return c, nil
	})
	p.host.Refresh()
	return err
}

// Declare adds a parameter or changes who may read it. A private value is sealed
// before the spec says so, and an earlier one goes after it: at no moment has a
// value a place that its visibility does not allow.
func (p *params) Declare(ctx context.Context, id imprint.InstanceID, param imprint.Param, value imprint.Secret, by string) error {
	if param.Visibility == imprint.Private {
		err := p.put(id, map[string]imprint.Secret{param.Name: value}, func(sealed map[string][]byte) error {
			return p.values.store.PutSealedParam(ctx, id, param.Name, sealed[param.Name])
		})
		if err != nil {
			return err
		}
	}
	if param.Visibility == imprint.Public {
		param.Value = string(value.Reveal())
	}
	inst, err := p.store.Update(ctx, id, func(i *imprint.Instance) (imprint.Change, error) {
		at := slices.IndexFunc(i.Spec.Params, func(q imprint.Param) bool { return q.Name == param.Name })
		switch {
		case at >= 0:
			i.Spec.Params[at] = param
		case len(i.Spec.Params) == imprint.MaxParams:
			return imprint.Change{}, imprint.Errorf(imprint.Exhausted, "set", "parameter "+param.Name, "the instance has %d parameters already", imprint.MaxParams)
		default:
			i.Spec.Params = append(i.Spec.Params, param)
		}
		change := changedParam(param.Name, by)
		change.Events[0].Detail["visibility"] = string(param.Visibility)
		change.WakeAt = enrol.WakeAt(i)
		return change, nil
	})
	if err != nil {
		return err
	}
	if param.Visibility != imprint.Private {
		if err := p.values.store.PutSealedParam(ctx, id, param.Name, nil); err != nil {
			return err
		}
	}
	if param.Visibility == imprint.SecretOnly {
		return p.PutSecret(ctx, inst, param.Name, value)
	}
	p.host.Refresh()
	return nil
}

// Remove takes a parameter out of the spec, and then its value away.
func (p *params) Remove(ctx context.Context, id imprint.InstanceID, name, by string) error {
	_, err := p.store.Update(ctx, id, func(i *imprint.Instance) (imprint.Change, error) {
		i.Spec.Params = slices.DeleteFunc(i.Spec.Params, func(q imprint.Param) bool { return q.Name == name })
		change := changedParam(name, by)
		change.Events[0].Detail["removed"] = "yes"
		change.WakeAt = enrol.WakeAt(i)
		return change, nil
	})
	if err == nil {
		err = p.values.store.PutSealedParam(ctx, id, name, nil)
	}
	p.values.secrets.Forget(id, name)
	p.host.Refresh()
	return err
}

// Values returns the values of the private and secret parameters of inst, and puts
// on record that they were read before it does.
func (p *params) Values(ctx context.Context, inst *imprint.Instance, by string) (map[string]imprint.Secret, error) {
	found := map[string]imprint.Secret{}
	var names []string
	for _, param := range inst.Spec.Params {
		if param.Visibility == imprint.Public {
			continue
		}
		value, err := p.Value(ctx, inst, param.Name)
		if err != nil {
			return nil, err
		}
		found[param.Name] = value
		names = append(names, param.Name)
	}
	if names == nil {
		return found, nil
	}
	_, err := p.store.Update(ctx, inst.ID, func(i *imprint.Instance) (imprint.Change, error) {
		if i.Generation != inst.Generation {
			return imprint.Change{}, imprint.Errorf(imprint.Conflict, "install", i.Ref(), "generation %d began meanwhile", i.Generation)
		}
		return imprint.Change{Keep: true, Events: []imprint.Event{{Kind: imprint.EventRead,
			Detail: map[string]string{"param": strings.Join(names, ", "), "for": "its installation", "by": by}}}}, nil
	})
	return found, err
}

func changedParam(name, by string) imprint.Change {
	return imprint.Change{Events: []imprint.Event{{Kind: imprint.EventChanged, Detail: map[string]string{"param": name, "by": by}}}}
}

// credentials hands out what is carried to a machine by hand.
type credentials struct {
	engine *enrol.Engine
	store  *store.Store
	facts  *facts
	now    func() time.Time
}

func (c *credentials) Token(ctx context.Context, id imprint.InstanceID, ttl time.Duration) (imprint.Secret, error) {
	return c.engine.Token(ctx, id, ttl)
}

// Payload is the encoded payload with a fresh token in it.
func (c *credentials) Payload(ctx context.Context, id imprint.InstanceID, ttl time.Duration) (imprint.Secret, error) {
	inst, err := c.store.Instance(ctx, id)
	if err != nil {
		return imprint.Secret{}, err
	}
	f, err := c.facts.of(inst.Spec.Tenant)
	if err != nil {
		return imprint.Secret{}, err
	}
	if len(f.CheckIn) == 0 {
		return imprint.Secret{}, imprint.Errorf(imprint.Conflict, "make payload for", inst.Ref(), "the server has no check-in endpoint, so the machine could not enrol with it").
			WithHint("set checkIn.listen in the server's configuration")
	}
	token, err := c.engine.Token(ctx, id, ttl)
	if err != nil {
		return imprint.Secret{}, err
	}
	p := dialect.Payload(inst, f, c.now())
	p.Token = string(token.Reveal())
	b, err := p.Encode()
	return imprint.NewSecret(b), err
}
