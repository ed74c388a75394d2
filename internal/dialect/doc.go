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
	// BootWindow is how long after the first read user data is served to stock
	// software, for instances that do not say; 0 if the server is too old to tell.
	BootWindow imprint.Duration
	// Packages are archives that the operator offers to Ganeti's OS scripts, by
	// name. A parameter of an instance chooses one of these names and never a file
	// of the host.
	Packages map[string][]byte
}

// values collects a View's entries for one set of readers.
type values struct {
	readers imprint.Readers
	m       map[string]imprint.Value
}

// put adds data under key, unless the key is taken or the audience rule keeps it
// from the readers.
func (v values) put(key string, visibility imprint.Visibility, data string) {
	v.putValue(key, imprint.Value{Data: []byte(data), Visibility: visibility})
}

// putValue is put for bytes that several keys may share.
func (v values) putValue(key string, value imprint.Value) {
	if _, taken := v.m[key]; taken || !imprint.MayTravel(value.Visibility, v.readers) {
		return
	}
	v.m[key] = value
}

func public(data string) imprint.Value {
	return imprint.Value{Data: []byte(data), Visibility: imprint.Public}
}

// userData is the instance's user data, which is served until the boot is closed.
func userData(spec *imprint.Spec) imprint.Value {
	return imprint.Value{Data: []byte(spec.UserData), Visibility: imprint.Public, BootOnly: true}
}

func (v values) view(inst *imprint.Instance) *imprint.View {
	return &imprint.View{Revision: inst.Revision, Rendered: inst.Updated, Values: v.m}
}
