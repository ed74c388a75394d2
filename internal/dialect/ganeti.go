package dialect

import (
	"imprint"
)

// GanetiParameters is where a Ganeti guest reads its OS parameters.
const GanetiParameters = "ganeti/latest/os/parameters.json"

// Ganeti renders what ganeti-metad serves below "ganeti/latest/": the public OS
// parameters, and the packages that an instance's parameters os-install-package
// and os-package choose among [Facts].Packages. meta_data.json, which metad
// leaves empty, says who the machine is.
//
// Private parameters are not in the instance's record: see [EncodeGanetiParameters].
func Ganeti(inst *imprint.Instance, facts Facts) *imprint.View {
	spec := &inst.Spec
	v := values{NetworkReaders, map[string]imprint.Value{}}
	var params []GanetiParameter
	for _, p := range spec.Params {
		if p.Visibility == imprint.Public {
			params = append(params, GanetiParameter{p.Name, p.Value, p.Visibility})
		}
	}
	v.put(GanetiParameters, imprint.Public, string(EncodeGanetiParameters(params)))
	v.put("ganeti/latest/meta_data.json", imprint.Public, compact(struct {
		UUID     imprint.InstanceID `json:"uuid"`
		Name     string             `json:"name"`
		Hostname string             `json:"hostname"`
	}{inst.ID, string(spec.Name), fqdn(spec)}))
	for _, p := range params {
		if name := map[string]string{"os-install-package": "os-install-package", "os-package": "package"}[p.Name]; name != "" {
			if archive, ok := facts.Packages[p.Value]; ok {
				v.putValue("ganeti/latest/os/"+name, imprint.Value{Data: archive, Visibility: imprint.Public})
			}
		}
	}
	return v.view(inst)
}

// GanetiParameter is one OS parameter with its value.
type GanetiParameter struct {
	Name       string
	Value      string
	Visibility imprint.Visibility
}

// EncodeGanetiParameters writes {"NAME":["VALUE","VISIBILITY"],…}, public
// parameters first, then private, then secret ones, as ganeti-metad does. The
// result holds the values: it may go only where they may.
func EncodeGanetiParameters(params []GanetiParameter) []byte {
	out := []byte{'{'}
	for _, visibility := range []imprint.Visibility{imprint.Public, imprint.Private, imprint.SecretOnly} {
		for _, p := range params {
			if p.Visibility != visibility {
				continue
			}
			if len(out) > 1 {
				out = append(out, ',')
			}
			out = append(out, compact(p.Name)+":"+compact([2]string{p.Value, string(visibility)})...)
		}
	}
	return append(out, '}')
}
