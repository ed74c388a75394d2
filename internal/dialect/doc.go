// Package dialect renders an instance into the shape that some guest software
// expects: one file a dialect, each a pure function from the instance and the
// tenant's [Facts] to an [imprint.View]. A View is rendered once when the
// instance changes; serving it is a look-up.
package dialect

import "imprint"

// Facts are what a dialect needs to know besides the instance itself. They are
// the same for all instances of a tenant.
type Facts struct {
	// CA is the PEM of the one CA to trust.
	CA string
	// Chain is the PEM of the issuing certificates, leaf's issuer first, without CA.
	Chain string
	// CheckIn are the base URLs of the check-in endpoint.
	CheckIn []string
	// Datacenter names the place for stock software; "" is the instance's host.
	Datacenter string
}

// values collects a View's entries for one set of readers.
type values struct {
	readers imprint.Readers
	m       map[string]imprint.Value
}

// put adds data under key, unless the key is taken or the audience rule keeps it
// from the readers.
func (v values) put(key string, visibility imprint.Visibility, data string) {
	if _, taken := v.m[key]; taken || !imprint.MayTravel(visibility, v.readers) {
		return
	}
	v.m[key] = imprint.Value{Data: []byte(data), Visibility: visibility}
}

func (v values) view(inst *imprint.Instance) *imprint.View {
	return &imprint.View{Revision: inst.Revision, Rendered: inst.Updated, Values: v.m}
}
