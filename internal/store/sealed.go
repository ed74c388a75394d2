package store

import (
	"context"
	"encoding/json"

	"imprint"
)

// SealedParams returns the sealed parameters of an instance by name; an unknown
// instance has none.
func (s *Store) SealedParams(ctx context.Context, id imprint.InstanceID) (map[string][]byte, error) {
	p, err := s.kv.read(ctx, query{key: s.keys.sealed(id)})
	if err != nil {
		return nil, during(err, "read", "parameters of "+string(id))
	}
	return decodeSealed(p.first())
}

// PutSealedParam stores one sealed parameter of an instance in place of an
// earlier one; a nil blob removes it. It fails with kind [imprint.NotFound] if
// there is no such instance.
func (s *Store) PutSealedParam(ctx context.Context, id imprint.InstanceID, name string, blob []byte) error {
	_, err := s.updateSealed(ctx, id, func(params map[string][]byte) (bool, error) {
		if blob == nil {
			_, had := params[name]
			delete(params, name)
			return had, nil
		}
		params[name] = blob
		return true, nil
	})
	return err
}

// RewriteSealed gives every sealed parameter of every instance to rewrite and
// stores what it returns if changed is true, as for a new sealing key. It goes
// on beside other changes: a parameter that is written meanwhile is given again.
// It returns how many instances were changed, and stops at the first error.
func (s *Store) RewriteSealed(ctx context.Context, rewrite func(id imprint.InstanceID, name string, blob []byte) (out []byte, changed bool, err error)) (int, error) {
	total := 0
	from := s.keys.sealedAll()
	for {
		p, err := s.kv.read(ctx, query{key: from, end: after(s.keys.sealedAll()), limit: DefaultPage, keysOnly: true})
		if err != nil {
			return total, during(err, "rewrite", "sealed parameters")
		}
		for i := range p.pairs {
			id := imprint.InstanceID(leaf(p.pairs[i].key))
			changed, err := s.updateSealed(ctx, id, func(params map[string][]byte) (bool, error) {
				any := false
				for name, blob := range params {
					out, changed, err := rewrite(id, name, blob)
					if err != nil {
						return false, err
					}
					if changed {
						params[name], any = out, true
					}
				}
				return any, nil
			})
			switch {
			case imprint.KindOf(err) == imprint.NotFound: // deleted meanwhile
			case err != nil:
				return total, err
			case changed:
				total++
			}
		}
		if !p.more {
			return total, nil
		}
		from = p.pairs[len(p.pairs)-1].key + "\x00"
	}
}

// updateSealed lets edit change the sealed parameters of an instance, and
// stores them if it returns true; it repeats that if others changed them
// meanwhile.
func (s *Store) updateSealed(ctx context.Context, id imprint.InstanceID, edit func(map[string][]byte) (bool, error)) (bool, error) {
	const verb = "update"
	operand := "parameters of " + string(id)
	for conflicts := range maxConflicts {
		pages, err := s.kv.readAll(ctx, []query{{key: s.keys.record(id)}, {key: s.keys.sealed(id)}})
		if err != nil {
			return false, during(err, verb, operand)
		}
		owner, found := pages[0].first(), pages[1].first()
		if owner == nil {
			return false, noInstance(verb, id)
		}
		params, err := decodeSealed(found)
		if err != nil {
			return false, err
		}
		if changed, err := edit(params); err != nil || !changed {
			return false, err
		}
		blob, err := encodeSealed(id, params)
		if err != nil {
			return false, err
		}
		var before int64
		if found != nil {
			before = found.modified
		}
		out, err := s.committer.commit(ctx, txn{
			when: []compare{{s.keys.record(id), owner.modified}, {s.keys.sealed(id), before}},
			then: []op{{verb: put, key: s.keys.sealed(id), value: blob}},
		})
		if err != nil {
			return false, during(err, verb, operand)
		}
		if out.applied {
			return true, nil
		}
		if err := pause(ctx, conflicts); err != nil {
			return false, during(err, verb, operand)
		}
	}
	return false, imprint.Errorf(imprint.Unavailable, verb, operand, "they were changed by others %d times in a row", maxConflicts)
}

func encodeSealed(id imprint.InstanceID, params map[string][]byte) ([]byte, error) {
	for name := range params {
		if name == "" || len(name) > imprint.MaxParamNameLen {
			return nil, imprint.Errorf(imprint.Invalid, "store", "parameter", "a name has %d bytes; 1 to %d are allowed", len(name), imprint.MaxParamNameLen)
		}
	}
	blob, err := json.Marshal(params)
	if err != nil {
		return nil, imprint.Errorf(imprint.Internal, "encode", "parameters of "+string(id), "%w", err)
	}
	if len(blob) > MaxSealed {
		return nil, tooLarge("store", "parameters of "+string(id), "the sealed parameters of the instance", len(blob), MaxSealed)
	}
	return blob, nil
}

// decodeSealed reads what [encodeSealed] wrote; nil is an empty map.
func decodeSealed(p *pair) (map[string][]byte, error) {
	params := make(map[string][]byte)
	if p == nil {
		return params, nil
	}
	if err := json.Unmarshal(p.value, &params); err != nil {
		return nil, imprint.Errorf(imprint.Internal, "decode", p.key, "%w", err)
	}
	return params, nil
}
