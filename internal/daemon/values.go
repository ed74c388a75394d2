package daemon

import (
	"context"
	"sync"

	"imprint"
	"imprint/internal/host"
)

// sealedParams is where private values are kept.
type sealedParams interface {
	SealedParams(ctx context.Context, id imprint.InstanceID) (map[string][]byte, error)
	PutSealedParam(ctx context.Context, id imprint.InstanceID, name string, blob []byte) error
}

// values finds the values of private parameters, sealed in the store, and of
// secret ones, in this host's memory.
type values struct {
	store   sealedParams
	keys    sealer
	secrets *host.Secrets

	// writing is held for reading from the sealing of a value to its storing, so
	// that a change of the key-encryption key misses none.
	writing sync.RWMutex
}

// settle returns when every value that was being sealed is stored, or not.
func (v *values) settle() {
	v.writing.Lock()
	defer v.writing.Unlock()
}

func paramContext(id imprint.InstanceID, name string) string {
	return "param/" + string(id) + "/" + name
}

// Param returns a private value. It fails with kind NotFound if there is none.
func (v *values) Param(ctx context.Context, id imprint.InstanceID, name string) (imprint.Secret, error) {
	sealed, err := v.store.SealedParams(ctx, id)
	if err != nil {
		return imprint.Secret{}, err
	}
	blob, ok := sealed[name]
	if !ok {
		return imprint.Secret{}, imprint.Errorf(imprint.NotFound, "read", "parameter "+name, "it has no value yet").
			WithHint("give it one with: imprint set")
	}
	return v.keys.Open(blob, paramContext(id, name))
}

// Value returns a private or secret value of the instance's present generation.
// It fails with kind NotFound if the value is not at hand.
func (v *values) Value(ctx context.Context, inst *imprint.Instance, name string) (imprint.Secret, error) {
	for _, p := range inst.Spec.Params {
		if p.Name != name {
			continue
		}
		switch p.Visibility {
		case imprint.Private:
			return v.Param(ctx, inst.ID, name)
		case imprint.SecretOnly:
			if s, ok := v.secrets.Get(inst.ID, inst.Generation, name); ok {
				return s, nil
			}
			return imprint.Secret{}, imprint.Errorf(imprint.NotFound, "read", "parameter "+name, "its value has to be given again").
				WithHint("give it with: imprint set")
		}
	}
	return imprint.Secret{}, imprint.Errorf(imprint.NotFound, "read", "parameter "+name, "the instance has no such parameter")
}

// Held returns which private and secret parameters have a value at hand.
func (v *values) Held(ctx context.Context, inst *imprint.Instance) (map[string]bool, error) {
	sealed, err := v.store.SealedParams(ctx, inst.ID)
	if err != nil {
		return nil, err
	}
	held := map[string]bool{}
	for _, p := range inst.Spec.Params {
		switch p.Visibility {
		case imprint.Private:
			_, held[p.Name] = sealed[p.Name]
		case imprint.SecretOnly:
			_, held[p.Name] = v.secrets.Get(inst.ID, inst.Generation, p.Name)
		}
	}
	return held, nil
}

// put seals the private values of an instance and hands them to store.
func (v *values) put(id imprint.InstanceID, private map[string]imprint.Secret, store func(map[string][]byte) error) error {
	v.writing.RLock()
	defer v.writing.RUnlock()
	if len(private) > 0 {
		if err := v.keys.Reload(); err != nil {
			return err
		}
	}
	blobs := make(map[string][]byte, len(private))
	for name, value := range private {
		blob, err := v.keys.Seal(value, paramContext(id, name))
		if err != nil {
			return err
		}
		blobs[name] = blob
	}
	return store(blobs)
}
