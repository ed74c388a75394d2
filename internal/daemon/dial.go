package daemon

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"imprint"
	"imprint/internal/host"
)

// DialConfig names the sockets of a hypervisor that listens, where imprint
// connects instead of being connected to.
type DialConfig struct {
	// Channel is serial or virtio-serial.
	Channel string `yaml:"channel"`
	// Socket is a path, in which {id}, {name} and {tenant} stand for the instance's.
	Socket string `yaml:"socket"`
	// Instance is the only instance that is meant, by its ID, name or
	// tenant/name; empty means every instance that has the channel.
	Instance string `yaml:"instance"`
}

// dialled returns the socket to dial for a channel of inst, "" if there is none:
// that of the first entry that fits.
func (s *Settings) dialled(inst *imprint.Instance, kind imprint.ChannelKind) string {
	for _, d := range s.Dial {
		if d.Channel == string(kind) && (d.Instance == "" || d.Instance == inst.Ref() || d.Instance == string(inst.ID)) {
			return d.path(string(inst.ID), string(inst.Spec.Name), string(inst.Spec.Tenant))
		}
	}
	return ""
}

func (d *DialConfig) path(id, name, tenant string) string {
	return strings.NewReplacer("{id}", id, "{name}", name, "{tenant}", tenant).Replace(d.Socket)
}

func (s *Settings) checkDial() error {
	for i := range s.Dial {
		d := &s.Dial[i]
		what := fmt.Sprintf("dial[%d]", i)
		if kind := imprint.ChannelKind(d.Channel); kind != imprint.Serial2 && kind != imprint.VirtioSerial {
			return imprint.Errorf(imprint.Invalid, "check", what+" channel", "%q is neither %s nor %s", d.Channel, imprint.Serial2, imprint.VirtioSerial)
		}
		var err error
		if d.Instance, err = configuredInstance(what, d.Instance, s.Tenants); err != nil {
			return err
		}
		if err := s.checkDialledSocket(what, d); err != nil {
			return err
		}
		for j, before := range s.Dial[:i] {
			if before.Channel == d.Channel && (before.Instance == "" || before.Instance == d.Instance) {
				return imprint.Errorf(imprint.Invalid, "check", what, "dial[%d] fits already, and the first that fits counts", j).
					WithHint("put the entry for one instance before the one for all")
			}
			if before.Socket == d.Socket {
				return imprint.Errorf(imprint.Invalid, "check", what+" socket", "dial[%d] has %q already", j, d.Socket).
					WithHint("give every instance and channel a socket of its own")
			}
		}
	}
	return nil
}

// configuredInstance checks the instance that an entry of the configuration is
// for, and returns it as [imprint.Instance.Ref] writes it.
func configuredInstance(what, instance string, tenants []imprint.Tenant) (string, error) {
	if instance == "" || imprint.ValidID(instance) {
		return instance, nil
	}
	tenant, name, qualified := strings.Cut(instance, "/")
	if !qualified {
		tenant, name = string(imprint.DefaultTenant), instance
	}
	for _, label := range []string{tenant, name} {
		if err := imprint.CheckLabel(what+" instance", label); err != nil {
			return "", err
		}
	}
	known := slices.ContainsFunc(tenants, func(t imprint.Tenant) bool { return string(t.Name) == tenant })
	if !known && len(tenants) > 0 { // imprint host does not know them
		return "", imprint.Errorf(imprint.Invalid, "check", what+" instance", "there is no tenant %q", tenant).
			WithHint("add it under tenants, or name the instance by its ID")
	}
	if tenant == string(imprint.DefaultTenant) {
		return name, nil
	}
	return instance, nil
}

func (s *Settings) checkDialledSocket(what string, d *DialConfig) error {
	what += " socket"
	const example = "/run/qemu/web-1.sock"
	one := d.path(strings.Repeat("0", 36), "n", "t") // an instance with the shortest names
	switch {
	case !filepath.IsAbs(d.Socket) || filepath.Clean(one) != one:
		return imprint.Errorf(imprint.Invalid, "check", what, "%q is not an absolute path such as %s", d.Socket, example)
	case strings.ContainsAny(one, "{}"):
		return imprint.Errorf(imprint.Invalid, "check", what, "%q has braces around something else than id, name or tenant", d.Socket)
	case len(one) > host.MaxSocketPath:
		return imprint.Errorf(imprint.Invalid, "check", what, "%q makes paths of %d bytes and more; a socket's path holds %d", d.Socket, len(one), host.MaxSocketPath)
	case d.Instance == "" && !strings.Contains(d.Socket, "{id}") && !strings.Contains(d.Socket, "{name}"):
		return imprint.Errorf(imprint.Invalid, "check", what, "%q would be every instance's", d.Socket).
			WithHint("put {name} or {id} into it, or name the instance it belongs to")
	case one == s.Socket || filepath.Dir(filepath.Dir(one)) == s.Run && filepath.Base(one) == d.Channel+".sock":
		return imprint.Errorf(imprint.Invalid, "check", what, "%q is where imprint listens itself", d.Socket).
			WithHint("name the socket on which the hypervisor listens; without dial, the hypervisor connects to imprint's")
	}
	return nil
}
