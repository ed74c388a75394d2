package hostapi

import (
	"strings"
	"time"

	"imprint"
)

// Tenant is the tenant of the hypervisors. No other machine belongs to it.
const Tenant imprint.TenantName = "hosts"

// NameOf returns the name of the machine that is host: its dots become hyphens,
// so that no two machines are the same host.
func NameOf(host imprint.HostName) imprint.InstanceName {
	return imprint.InstanceName(strings.ReplaceAll(string(host), ".", "-"))
}

// certificateLife is the life of a hypervisor's certificate. Nobody but the control
// plane takes it, which asks its store each time whether it is revoked; so it may
// live long enough for the control plane to be away for ten days before a renewal.
const certificateLife = 30 * 24 * time.Hour

// SpecOf returns the reservation of a hypervisor.
func SpecOf(host imprint.HostName) imprint.Spec {
	return imprint.Spec{
		Name: NameOf(host), Tenant: Tenant, DNSNames: []string{string(host)},
		Channels: []imprint.ChannelKind{imprint.NetworkEST},
		Policy:   imprint.Policy{Lifetime: imprint.Duration(certificateLife)},
	}
}

// HostOf is the one place that decides for which host a machine speaks: one of
// the tenant of hosts, with one DNS name, after which it is named. Names are
// unique within a tenant, so no second machine speaks for that host. It fails
// with kind [imprint.Denied] for every other machine.
func HostOf(spec *imprint.Spec) (imprint.HostName, error) {
	refuse := func(why string) (imprint.HostName, error) {
		return "", imprint.Errorf(imprint.Denied, "speak for a host as", string(spec.Tenant)+"/"+string(spec.Name), "%s", why).
			WithHint("reserve hypervisors with: imprint host add NAME")
	}
	if spec.Tenant != Tenant {
		return refuse("it is a machine of another tenant than " + string(Tenant))
	}
	if len(spec.DNSNames) != 1 || len(spec.IPs) != 0 {
		return refuse("a hypervisor has one DNS name and no address in its certificate")
	}
	host := imprint.HostName(spec.DNSNames[0])
	if spec.Name != NameOf(host) {
		return refuse("hypervisor " + string(host) + " is named " + string(NameOf(host)))
	}
	return host, nil
}
