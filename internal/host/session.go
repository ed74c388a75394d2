package host

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"strings"

	"imprint"
	"imprint/internal/dialect"
	"imprint/internal/triton"
)

// session answers one connection of a guest; it implements [triton.Handler].
type session struct {
	unit    *unit
	channel imprint.Channel
	log     *slog.Logger
	refusal string // the last one that was put on record
	logged  string // the last one that was logged
}

// prefix begins the keys of imprint's own.
const prefix = "imprint:"

// now returns the instance as it is, unless the channel was taken from it.
func (s *session) now() (*snapshot, error) {
	snap, _ := s.unit.current()
	if !slices.Contains(snap.inst.Spec.Channels, s.channel.Kind) {
		return nil, triton.Failure("the instance does not have this channel any more")
	}
	return snap, nil
}

// Get implements [triton.Handler].
func (s *session) Get(ctx context.Context, key string) ([]byte, error) {
	snap, err := s.now()
	if err != nil {
		return nil, err
	}
	if strings.HasPrefix(key, prefix) {
		value, err := s.native(ctx, snap, key)
		return value, s.explain(ctx, key, err)
	}
	if v, ok := snap.stock.Lookup(key); ok {
		return v.Data, nil
	}
	if value, ok := s.unit.notes.get(key); ok {
		return value, nil
	}
	return nil, notFound(key)
}

// Put implements [triton.Handler].
func (s *session) Put(ctx context.Context, key string, value []byte) error {
	snap, err := s.now()
	if err != nil {
		return err
	}
	return s.explain(ctx, key, s.put(ctx, snap, key, value))
}

// Delete implements [triton.Handler].
func (s *session) Delete(ctx context.Context, key string) error {
	snap, err := s.now()
	if err != nil {
		return err
	}
	return s.explain(ctx, key, s.delete(snap, key))
}

// delete removes a key.
func (s *session) delete(snap *snapshot, key string) error {
	if name, digest, ok := pipeOf(key); ok && digest != "" {
		p, err := s.unit.pipe(name)
		if err != nil {
			return err
		}
		s.unit.traffic.add(s.unit, passage{name, toMachine, taken, s.channel.Kind, "root of the machine"}, p.down.takeDigest(digest))
		return nil
	}
	if err := writable(snap, key); err != nil {
		return err
	}
	s.unit.notes.delete(key)
	return nil
}

// Keys implements [triton.Handler].
func (s *session) Keys(context.Context) ([]string, error) {
	snap, err := s.now()
	if err != nil {
		return nil, err
	}
	keys := slices.Collect(maps.Keys(snap.stock.Values))
	keys = slices.AppendSeq(keys, maps.Keys(snap.native[s.channel.Kind].Values))
	keys = append(keys, dialect.KeyParams, dialect.KeyState, dialect.KeyTime)
	keys = append(keys, s.unit.notes.keys()...)
	slices.Sort(keys)
	return slices.Compact(keys), nil
}

// writable returns an error unless key is the guest's own to set.
func writable(snap *snapshot, key string) error {
	if _, ours := snap.stock.Lookup(key); ours || dialect.TritonSteers(key) {
		return imprint.Errorf(imprint.Denied, "set", key, "the key belongs to the host")
	}
	return nil
}

func notFound(key string) error {
	return imprint.Errorf(imprint.NotFound, "get", key, "no such key")
}

// complain puts an error into the log, but not again and again: a guest must not
// fill it.
func (s *session) complain(ctx context.Context, key string, err error) {
	if err == nil || imprint.KindOf(err) == imprint.NotFound {
		return
	}
	level := slog.LevelWarn
	if what := key + " " + err.Error(); what == s.logged || !s.unit.complaints.admit(s.unit.host.c.Now()) {
		level = slog.LevelDebug
	} else {
		s.logged = what
	}
	s.log.Log(ctx, level, "turned a request down", "key", key, "error", err)
}

// explain turns an error into what the guest may know of it: one sentence. The
// log has the whole.
func (s *session) explain(ctx context.Context, key string, err error) error {
	if err == nil || imprint.KindOf(err) == imprint.NotFound {
		return err
	}
	s.complain(ctx, key, err)
	var e *imprint.Error
	switch kind := imprint.KindOf(err); {
	case kind == imprint.Unavailable || errors.Is(err, context.DeadlineExceeded):
		return triton.Failure("the control plane cannot be reached; " + triton.AskAgain)
	case errors.As(err, new(noRoom)):
		return triton.Failure("there is no room for this at present; " + triton.AskAgain)
	case kind == imprint.Internal || !errors.As(err, &e):
		return triton.Failure("the host could not do this, and its log says why; " + triton.AskAgain)
	}
	return triton.Failure(strings.Join(strings.Fields(e.Error()), " "))
}

// noRoom is how the control plane says "not now": its disk is full, or the
// machine is in too much of a hurry. That is no refusal.
type noRoom struct{ error }

func (n noRoom) Unwrap() error { return n.error }

// fromControl marks what the control plane has no room for.
func fromControl(err error) error {
	if imprint.KindOf(err) == imprint.Exhausted {
		return noRoom{err}
	}
	return err
}
