package daemon

import (
	"fmt"
	"path"
	"strings"

	"imprint"
	"imprint/internal/tap"
)

// AdoptConfig names interfaces that the hypervisor's platform makes, which imprint
// adopts for the channel nic instead of making a tap.
type AdoptConfig struct {
	// Interface is a pattern such as vnet*, where the interface's own properties
	// tell whose it is (see tap.NIC); or one interface, in which {name}, {tenant}
	// and {tap} stand for the instance's, the last for the name of the tap that
	// imprint would make.
	Interface string `yaml:"interface"`
	// Instance is the only instance that is meant, by its ID, name or
	// tenant/name; empty means every instance that has the channel.
	Instance string `yaml:"instance"`
}

func (a *AdoptConfig) pattern() bool { return strings.ContainsAny(a.Interface, `*?[\`) }

// fits reports whether a is about inst. A name without a tenant is one in the
// default tenant, here as everywhere: or else two tenants' instances of one name
// would have one interface.
func (a *AdoptConfig) fits(inst *imprint.Instance) bool {
	if a.Instance != "" {
		return a.Instance == inst.Ref() || a.Instance == string(inst.ID)
	}
	return !a.unqualified() || inst.Spec.Tenant == imprint.DefaultTenant
}

func (a *AdoptConfig) unqualified() bool {
	return strings.Contains(a.Interface, "{name}") && !strings.Contains(a.Interface, "{tenant}")
}

// covers reports whether a fits every instance that b is about, as far as b says
// whose they are: of an ID the tenant is not known.
func (a *AdoptConfig) covers(b *AdoptConfig) bool {
	switch {
	case a.Instance != "":
		return a.Instance == b.Instance
	case !a.unqualified():
		return true
	case b.Instance == "":
		return b.unqualified()
	}
	return !imprint.ValidID(b.Instance) && !strings.Contains(b.Instance, "/")
}

func (a *AdoptConfig) of(id, name, tenant string) string {
	return strings.NewReplacer("{name}", name, "{tenant}", tenant, "{tap}", tap.NameOf(id)).Replace(a.Interface)
}

// adopted returns the interface that the platform makes for inst, or a pattern;
// "" if imprint makes it: what the first entry that fits says. It fails with kind
// [imprint.Invalid] if the name is too long for an interface.
func adopted(list []AdoptConfig, inst *imprint.Instance) (string, error) {
	for _, a := range list {
		if !a.fits(inst) {
			continue
		}
		name := a.of(string(inst.ID), string(inst.Spec.Name), string(inst.Spec.Tenant))
		if len(name) > tap.MaxName && !a.pattern() {
			return "", imprint.Errorf(imprint.Invalid, "adopt", name, "the interface of %s would have a name of %d letters; %d are allowed", inst.Ref(), len(name), tap.MaxName).
				WithHint("name the interface for this instance alone, in an entry with instance: %s, before the one with %s", inst.Ref(), a.Interface)
		}
		return name, nil
	}
	return "", nil
}

// checkAdopt refuses entries that cannot work, or by which one instance could get
// another's interface.
func checkAdopt(list []AdoptConfig, tenants []imprint.Tenant) error {
	for i := range list {
		a := &list[i]
		what := fmt.Sprintf("adopt[%d]", i)
		var err error
		if a.Instance, err = configuredInstance(what, a.Instance, tenants); err != nil {
			return err
		}
		if err := a.checkInterface(what + " interface"); err != nil {
			return err
		}
		for j, before := range list[:i] {
			if before.covers(a) {
				return imprint.Errorf(imprint.Invalid, "check", what, "adopt[%d] fits already, and the first that fits counts", j).
					WithHint("put the entry for one instance before the one for all")
			}
			if before.Interface == a.Interface && !a.pattern() && !strings.Contains(a.Interface, "{") {
				return imprint.Errorf(imprint.Invalid, "check", what+" interface", "adopt[%d] has %q already", j, a.Interface).
					WithHint("give every instance an interface of its own")
			}
		}
	}
	return nil
}

func (a *AdoptConfig) checkInterface(what string) error {
	invalid := func(format string, args ...any) *imprint.Error {
		return imprint.Errorf(imprint.Invalid, "check", what, format, args...)
	}
	one := a.of("", "n", "t") // an instance with the shortest names
	variable := strings.Contains(a.Interface, "{name}") || strings.Contains(a.Interface, "{tap}")
	if a.pattern() {
		if _, err := path.Match(a.Interface, ""); err != nil || strings.ContainsAny(a.Interface, "{}/") {
			return invalid("%q is not a pattern such as vnet*", a.Interface).
				WithHint("a pattern has no placeholders: web-1* would fit the interface of web-10 as well")
		}
		return nil
	}
	switch {
	case strings.ContainsAny(one, "{}"):
		return invalid("%q has braces around something else than name, tenant or tap", a.Interface)
	case !tap.ValidName(one):
		return invalid("%q makes no names of interfaces", a.Interface).
			WithHint("use 1 to %d letters, digits, dots, underscores and hyphens, with a letter first", tap.MaxName)
	case a.Instance == "" && !variable:
		return invalid("%q would be every instance's", a.Interface).
			WithHint("put {name} or {tap} into it, or name the instance it belongs to")
	}
	// a-b of tenant c is not b of tenant c-a, and what comes between may not be a
	// letter of either.
	parts := strings.FieldsFunc(strings.NewReplacer("{name}", "\x00", "{tenant}", "\x00", "{tap}", "\x00").Replace(a.Interface), func(r rune) bool { return r == '.' || r == '_' })
	for _, part := range parts {
		if strings.Count(part, "\x00") > 1 {
			return invalid("%q makes one interface of different instances", a.Interface).
				WithHint("put a dot or an underscore between the placeholders: no name has one")
		}
	}
	return nil
}
