package store

import (
	"context"
	"encoding/json"
	"slices"
	"time"

	"imprint"
)

// Create stores a new instance with its sealed parameters and what c holds, in
// one transaction. It fails with kind [imprint.Exists] if the name within the
// tenant or c's key is taken, or the id, also by an instance that was deleted
// since, and [imprint.Invalid] if a name is malformed. On success i has its
// Revision, Events, and, where they were zero, Created and Updated.
func (s *Store) Create(ctx context.Context, i *imprint.Instance, sealed map[string][]byte, c imprint.Change) error {
	if err := checkNames(i); err != nil {
		return err
	}
	now := s.now()
	rec := record{Instance: *i, Given: true}
	rec.Events = 0
	if rec.Created.IsZero() {
		rec.Created = now
	}
	if rec.Updated.IsZero() {
		rec.Updated = now
	}
	e := &edit{op: "create", keys: s.keys, rec: &rec, now: now}
	e.expect(s.keys.record(i.ID), 0)
	e.expect(s.keys.given(i.ID), 0)
	e.put(s.keys.given(i.ID), nil)
	e.name()
	if len(sealed) > 0 {
		blob, err := encodeSealed(i.ID, sealed)
		if err != nil {
			return err
		}
		e.put(s.keys.sealed(i.ID), blob)
	}
	if err := e.write(&c); err != nil {
		return err
	}
	out, err := s.committer.commit(ctx, e.txn)
	if err != nil {
		return during(err, "create", i.Ref())
	}
	if !out.applied {
		return taken(i, &c, out)
	}
	*i = *e.applied(s, out.revision)
	return nil
}

// taken says which of the things that Create found present was in the way.
func taken(i *imprint.Instance, c *imprint.Change, out outcome) error {
	if err := idTaken(i, out.pages[:2]); err != nil {
		return err
	}
	if out.pages[2].first() != nil {
		return nameTaken("create", i)
	}
	return keyTaken("create", i, c.BindKey)
}

// CheckID fails as [Store.Create] would if the id of i were taken; ID, tenant and
// name of i count. It holds for now only: Create looks again.
func (s *Store) CheckID(ctx context.Context, i *imprint.Instance) error {
	pages, err := s.kv.readAll(ctx, []query{{key: s.keys.record(i.ID)}, {key: s.keys.given(i.ID)}})
	if err != nil {
		return during(err, "create", i.Ref())
	}
	return idTaken(i, pages)
}

// idTaken returns the error of a new instance whose id is taken, according to
// pages: the record of that id, and its entry in the list of those that were
// given. To another tenant an instance that is there and one that was deleted
// look the same, and it does not learn whose they are.
func idTaken(i *imprint.Instance, pages []page) error {
	if found := pages[0].first(); found != nil {
		owner, err := decodeRecord(found)
		if err != nil {
			return err
		}
		if owner.Spec.Tenant == i.Spec.Tenant {
			return imprint.Errorf(imprint.Exists, "create", i.Ref(), "the id %s is that of %s already", i.ID, owner.Ref()).
				WithHint("see: imprint describe %s", owner.Ref())
		}
	} else if pages[1].first() == nil {
		return nil
	}
	return imprint.Errorf(imprint.Exists, "create", i.Ref(), "the id %s was given before, and none is given twice", i.ID).
		WithHint("leave the id out, and imprint draws one; a machine that is installed anew keeps its instance: imprint rebirth")
}

func nameTaken(op string, i *imprint.Instance) error {
	return imprint.Errorf(imprint.Exists, op, i.Ref(), "tenant %s has an instance named %s already", i.Spec.Tenant, i.Spec.Name).
		WithHint("choose another name, or delete the other instance first")
}

func keyTaken(op string, i *imprint.Instance, k imprint.KeyID) error {
	return imprint.Errorf(imprint.Exists, op, i.Ref(), "the public key %s belongs to another instance or generation", k).
		WithHint("make a new key on the machine")
}

// rewrite plans an Update.
func (s *Store) rewrite(cur *record, next *imprint.Instance, c *imprint.Change) (*edit, error) {
	if c.Keep && len(c.Events) == 0 && c.BindKey == "" && len(c.Revoke) == 0 && c.Log == nil {
		return nil, nil
	}
	renamed := next.Spec.Name != cur.Spec.Name
	moved := next.Spec.Host != cur.Spec.Host
	if next.ID != cur.ID || next.Spec.Tenant != cur.Spec.Tenant {
		return nil, imprint.Errorf(imprint.Invalid, "update", cur.Ref(), "the id and the tenant of an instance never change")
	}
	if renamed || moved {
		if err := checkNames(next); err != nil {
			return nil, err
		}
	}
	e := &edit{op: "update", keys: s.keys, now: s.now(), rec: &record{Instance: *next, Wake: cur.Wake, Given: cur.Given}}
	e.rec.Events = cur.Events
	e.expect(s.keys.record(cur.ID), cur.Revision)
	if renamed {
		e.remove(s.keys.name(cur.Spec.Tenant, cur.Spec.Name), "")
		e.name()
	}
	if moved && cur.Spec.Host != "" {
		e.remove(s.keys.placement(cur.Spec.Host, cur.ID), "")
	}
	if !c.Keep {
		e.rec.Updated = e.now
	}
	if err := e.write(c); err != nil {
		return nil, err
	}
	return e, nil
}

// erase plans a Delete.
func (s *Store) erase(cur *record, next *imprint.Instance, c *imprint.Change) (*edit, error) {
	if c.Keep {
		return nil, nil
	}
	e := &edit{op: "delete", keys: s.keys, now: s.now(), rec: &record{Instance: cur.Instance}}
	e.expect(s.keys.record(cur.ID), cur.Revision)
	all := s.keys.instance(cur.ID)
	e.remove(all, after(all))
	e.remove(s.keys.name(cur.Spec.Tenant, cur.Spec.Name), "")
	e.remove(s.keys.sealed(cur.ID), "")
	if !cur.Given { // else it is on the list, so that a store that is full can delete
		e.put(s.keys.given(cur.ID), nil)
	}
	if cur.Spec.Host != "" {
		e.remove(s.keys.placement(cur.Spec.Host, cur.ID), "")
	}
	if cur.Wake != 0 {
		e.remove(s.keys.wake(cur.Wake, cur.ID), "")
	}
	if err := e.revoke(c.Revoke); err != nil {
		return nil, err
	}
	return e, nil
}

// edit is a transaction about one instance in the making.
type edit struct {
	txn
	op   string
	keys layout
	rec  *record // as it will be stored
	now  time.Time
	size int // bytes of keys and values
	// encoded is rec as it is written; nil if the edit deletes it.
	encoded []byte
}

// applied completes the instance of an edit that was applied, and remembers it.
func (e *edit) applied(s *Store, revision int64) *imprint.Instance {
	e.rec.Revision = revision
	if e.encoded == nil {
		s.recent.forget(e.rec.ID)
	} else {
		s.recent.remember(e.rec.ID, e.rec, len(e.encoded))
	}
	return e.rec.Clone()
}

func (e *edit) put(key string, value []byte) {
	e.then = append(e.then, op{verb: put, key: key, value: value})
	e.size += len(key) + len(value)
}

func (e *edit) putJSON(key string, v any) error {
	value, err := json.Marshal(v)
	if err != nil {
		return imprint.Errorf(imprint.Internal, e.op, e.rec.Ref(), "encode %s: %w", key, err)
	}
	e.put(key, value)
	return nil
}

func (e *edit) remove(key, end string) {
	e.then = append(e.then, op{verb: remove, key: key, end: end})
}

// expect makes the edit depend on key being at revision (0: absent), and asks
// to see it otherwise. The record comes first.
func (e *edit) expect(key string, revision int64) {
	e.when = append(e.when, compare{key, revision})
	e.otherwise = append(e.otherwise, key)
}

// name claims the instance's name.
func (e *edit) name() {
	key := e.keys.name(e.rec.Spec.Tenant, e.rec.Spec.Name)
	e.expect(key, 0)
	e.put(key, []byte(e.rec.ID))
}

// write adds what c holds, the record, and the placement.
func (e *edit) write(c *imprint.Change) error {
	if err := e.events(c.Events); err != nil {
		return err
	}
	if c.BindKey != "" {
		key := e.keys.key(c.BindKey)
		e.expect(key, 0)
		if err := e.putJSON(key, binding{Instance: e.rec.ID, Generation: e.rec.Generation}); err != nil {
			return err
		}
	}
	if err := e.revoke(c.Revoke); err != nil {
		return err
	}
	if c.Log != nil {
		e.put(e.keys.logEntry(c.Log), c.Log.Data)
	}
	if !c.Keep {
		e.wake(c.WakeAt)
	}
	if e.rec.Spec.Host != "" {
		e.put(e.keys.placement(e.rec.Spec.Host, e.rec.ID), nil)
	}
	if err := e.putJSON(e.keys.record(e.rec.ID), e.rec); err != nil {
		return err
	}
	e.encoded = e.then[len(e.then)-1].value
	if n := len(e.encoded); n > MaxRecord {
		return tooLarge(e.op, e.rec.Ref(), "the instance", n, MaxRecord)
	}
	if e.size > maxTxnSize {
		return tooLarge(e.op, e.rec.Ref(), "the instance with its sealed parameters", e.size, maxTxnSize)
	}
	return nil
}

func tooLarge(op, operand, what string, n, limit int) error {
	return imprint.Errorf(imprint.Exhausted, op, operand, "%s takes %d bytes; the limit is %d", what, n, limit).
		WithHint("shorten the user data, vendor data, metadata or parameters")
}

// events appends to the timeline and drops its oldest end.
func (e *edit) events(events []imprint.Event) error {
	if len(events) > MaxChangeEvents {
		return imprint.Errorf(imprint.Internal, e.op, e.rec.Ref(), "%d events in one change; the limit is %d", len(events), MaxChangeEvents)
	}
	if len(events) == 0 {
		return nil
	}
	before := e.rec.Events
	together := slices.Clone(events)
	for i := range together {
		ev := &together[i]
		e.rec.Events++
		ev.Instance = e.rec.ID
		ev.Seq = e.rec.Events
		if ev.Generation == 0 {
			ev.Generation = e.rec.Generation
		}
		if ev.At.IsZero() {
			ev.At = e.now
		}
	}
	if err := e.putJSON(e.keys.events(e.rec.ID, e.rec.Events), together); err != nil {
		return err
	}
	// What goes is named exactly: etcd would step over every key that it has
	// deleted of a range from the first event on. A change whose last event
	// stays keeps all of them.
	oldest := max(before, imprint.MaxEvents) - imprint.MaxEvents + 1
	newest := max(e.rec.Events, imprint.MaxEvents) - imprint.MaxEvents
	switch {
	case newest == oldest:
		e.remove(e.keys.events(e.rec.ID, oldest), "")
	case newest > oldest:
		e.remove(e.keys.events(e.rec.ID, oldest), e.keys.events(e.rec.ID, newest+1))
	}
	return nil
}

func (e *edit) revoke(revocations []imprint.Revocation) error {
	if len(revocations) > MaxChangeRevocations {
		return imprint.Errorf(imprint.Internal, e.op, e.rec.Ref(), "%d revocations in one change; the limit is %d", len(revocations), MaxChangeRevocations)
	}
	for i := range revocations {
		if err := e.putJSON(e.keys.revocation(e.rec.Spec.Tenant, revocations[i].Serial), &revocations[i]); err != nil {
			return err
		}
	}
	return nil
}

// wake moves the reminder to at, rounded up to a second; zero takes it away.
func (e *edit) wake(at time.Time) {
	var seconds int64
	if !at.IsZero() {
		seconds = max(1, at.Add(time.Second-1).Unix())
	}
	if seconds == e.rec.Wake {
		return
	}
	if e.rec.Wake != 0 {
		e.remove(e.keys.wake(e.rec.Wake, e.rec.ID), "")
	}
	if seconds != 0 {
		e.put(e.keys.wake(seconds, e.rec.ID), nil)
	}
	e.rec.Wake = seconds
}

// binding says who owns a public key.
type binding struct {
	Key        imprint.KeyID      `json:"-"`
	Instance   imprint.InstanceID `json:"instance"`
	Generation imprint.Generation `json:"generation"`
}

// owner returns who owns key, according to the answer to an edit that was not
// applied; ok is false if the edit did not ask or nobody owns it.
func (e *edit) owner(out outcome, key imprint.KeyID) (owner binding, ok bool, err error) {
	for i, asked := range e.otherwise {
		if asked != e.keys.key(key) {
			continue
		}
		found := out.pages[i].first()
		if found == nil {
			return binding{}, false, nil
		}
		if err := json.Unmarshal(found.value, &owner); err != nil {
			return binding{}, false, imprint.Errorf(imprint.Internal, "decode", found.key, "%w", err)
		}
		owner.Key = key
		return owner, true, nil
	}
	return binding{}, false, nil
}

// checkNames refuses what could not be a segment of a key.
func checkNames(i *imprint.Instance) error {
	if !imprint.ValidID(string(i.ID)) {
		return imprint.Errorf(imprint.Invalid, "check", "id", "%q is not an instance id", i.ID)
	}
	if err := imprint.CheckLabel("name", string(i.Spec.Name)); err != nil {
		return err
	}
	if err := imprint.CheckLabel("tenant", string(i.Spec.Tenant)); err != nil {
		return err
	}
	if i.Spec.Host != "" {
		return imprint.CheckDNSName("host", string(i.Spec.Host))
	}
	return nil
}
