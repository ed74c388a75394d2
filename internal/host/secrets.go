package host

import (
	"bytes"
	"maps"
	"slices"
	"sync"

	"imprint"
)

// Secrets keeps the values of secret parameters: in memory only, for one
// generation of each instance. A reinstall or a restart of the host needs them
// given again; [Secrets.Missing] says which.
type Secrets struct {
	mu sync.Mutex
	m  map[imprint.InstanceID]*generation // guarded by mu
}

// generation is the secrets of one life of an instance.
type generation struct {
	number imprint.Generation
	values map[string][]byte
}

// NewSecrets returns an empty store.
func NewSecrets() *Secrets {
	return &Secrets{m: map[imprint.InstanceID]*generation{}}
}

// Put keeps value under name for one generation, and forgets those of earlier
// ones. It fails with kind [imprint.Conflict] if there are values of a later
// generation, and [imprint.Exhausted] beyond [imprint.MaxParams] values or
// [imprint.MaxParamLen] bytes.
func (s *Secrets) Put(id imprint.InstanceID, gen imprint.Generation, name string, value imprint.Secret) error {
	b := value.Reveal()
	if len(b) > imprint.MaxParamLen {
		return imprint.Errorf(imprint.Exhausted, "keep", name, "%d bytes; the limit is %d", len(b), imprint.MaxParamLen)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	g := s.m[id]
	switch {
	case g != nil && g.number > gen:
		return imprint.Errorf(imprint.Conflict, "keep", name, "it is for generation %d; generation %d began meanwhile", gen, g.number)
	case g == nil || g.number < gen:
		g.wipe()
		g = &generation{number: gen, values: map[string][]byte{}}
		s.m[id] = g
	}
	if _, known := g.values[name]; !known && len(g.values) >= imprint.MaxParams {
		return imprint.Errorf(imprint.Exhausted, "keep", name, "there are %d values already", len(g.values))
	}
	clear(g.values[name])
	g.values[name] = bytes.Clone(b)
	return nil
}

// Get returns a copy of the value of name in generation gen.
func (s *Secrets) Get(id imprint.InstanceID, gen imprint.Generation, name string) (imprint.Secret, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	g := s.m[id]
	if g == nil || g.number != gen {
		return imprint.Secret{}, false
	}
	value, ok := g.values[name]
	return imprint.NewSecret(bytes.Clone(value)), ok
}

// Held returns the names of the values of generation gen, sorted.
func (s *Secrets) Held(id imprint.InstanceID, gen imprint.Generation) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if g := s.m[id]; g != nil && g.number == gen {
		return slices.Sorted(maps.Keys(g.values))
	}
	return nil
}

// Forget forgets one value of an instance.
func (s *Secrets) Forget(id imprint.InstanceID, name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if g := s.m[id]; g != nil {
		clear(g.values[name])
		delete(g.values, name)
	}
}

// Drop forgets all values of an instance.
func (s *Secrets) Drop(id imprint.InstanceID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.m[id].wipe()
	delete(s.m, id)
}

// expire forgets the values of generations before gen.
func (s *Secrets) expire(id imprint.InstanceID, gen imprint.Generation) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if g := s.m[id]; g != nil && g.number < gen {
		g.wipe()
		delete(s.m, id)
	}
}

// Missing returns the names of inst's secret parameters whose values have to be
// given again, in the spec's order.
func (s *Secrets) Missing(inst *imprint.Instance) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	g := s.m[inst.ID]
	var missing []string
	for _, p := range inst.Spec.Params {
		if p.Visibility != imprint.SecretOnly {
			continue
		}
		if g != nil && g.number == inst.Generation {
			if _, ok := g.values[p.Name]; ok {
				continue
			}
		}
		missing = append(missing, p.Name)
	}
	return missing
}

// wipe overwrites the values; g may be nil.
func (g *generation) wipe() {
	if g != nil {
		for _, b := range g.values {
			clear(b)
		}
	}
}
