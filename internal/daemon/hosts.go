package daemon

import (
	"context"
	"iter"
	"log/slog"
	"slices"
	"time"

	"imprint"
	"imprint/api"
	"imprint/internal/host"
	"imprint/internal/hostapi"
	"imprint/internal/store"
)

// lookTime is how long a host may take to tell how it serves an instance.
const lookTime = 2 * time.Second

// hosts finds the host role that serves an instance: the one in this process, or
// one on another hypervisor.
type hosts struct {
	own     imprint.HostName
	host    *host.Host
	secrets *host.Secrets
	store   *store.Store
	api     *hostapi.Server // nil if there are no other hypervisors
	logger  *slog.Logger
}

// openHosts makes the end of the host API that hypervisors connect to.
func (d *Daemon) openHosts() {
	d.hosts = &hosts{own: imprint.HostName(d.settings.Name), host: d.host, secrets: d.values.secrets, store: d.store, logger: d.Logger}
	if len(d.settings.Hosts.Domains) == 0 {
		return
	}
	d.hosts.api = hostapi.NewServer(hostapi.Config{
		Identify: d.authorities.Identify, Enrolments: d.measuredEngine(), Instances: placedElsewhere{d.records}, Params: d.values,
		Facts: d.facts().of, Sealing: d.sealedWith, Own: d.hosts.own, Logger: d.Logger, Now: d.Now,
	})
}

// sealedWith names the key that seals at present. Another server of the cluster may
// have changed it in the file.
func (d *Daemon) sealedWith() string {
	if err := d.keys.Reload(); err != nil {
		d.Logger.Warn("the key file was not read again", "error", err)
	}
	return d.keys.Primary().String()
}

// placedElsewhere reads the store for the host API.
type placedElsewhere struct{ *records }

func (p placedElsewhere) Placed(ctx context.Context, name imprint.HostName, from int64) iter.Seq2[hostapi.Notice, error] {
	return func(yield func(hostapi.Notice, error) bool) {
		for n, err := range p.Watch(ctx, store.Scope{Host: name}, from) {
			out := hostapi.Notice{Revision: n.Revision, Relist: n.Relist, Synced: n.Synced, Deleted: n.Deleted}
			if n.Instance != nil {
				out.Instance = &hostapi.Instance{Revision: n.Instance.Revision, Instance: *n.Instance}
			}
			if !yield(out, err) {
				return
			}
		}
	}
}

func (p placedElsewhere) Follow(ctx context.Context, id imprint.InstanceID) iter.Seq[struct{}] {
	return func(yield func(struct{}) bool) {
		for _, err := range p.Watch(ctx, store.Scope{Instance: id}, 0) {
			if err == nil && !yield(struct{}{}) {
				return
			}
		}
	}
}

// elsewhere reports whether name is a hypervisor that was added.
func (h *hosts) elsewhere(ctx context.Context, name imprint.HostName) bool {
	if h.api == nil || name == h.own || name == "" {
		return false
	}
	if h.api.State(name).Connected {
		return true
	}
	_, err := h.store.Lookup(ctx, hostapi.Tenant, hostapi.NameOf(name))
	return err == nil
}

// Host returns how a host is connected.
func (h *hosts) Host(ctx context.Context, name imprint.HostName) api.HostState {
	out := api.HostState{Name: name, State: api.HostUnknown}
	switch {
	case name == h.own:
		out.State = api.HostHere
	case h.elsewhere(ctx, name):
		out.State = api.HostAway
		if s := h.api.State(name); s.Connected {
			out.State, out.Since, out.Address = api.HostConnected, s.Since, s.Remote
		}
	}
	return out
}

// PutSecret hands a value to the memory of the host that serves i.
func (h *hosts) PutSecret(ctx context.Context, i *imprint.Instance, name string, value imprint.Secret) error {
	if h.elsewhere(ctx, i.Spec.Host) {
		_, err := h.api.Call(ctx, i.Spec.Host, hostapi.Call{
			Kind: hostapi.CallSecret, Instance: i.ID, Generation: i.Generation, Name: name, Value: value.Reveal(),
		})
		return err
	}
	if err := h.secrets.Put(i.ID, i.Generation, name, value); err != nil {
		return err
	}
	h.host.Refresh()
	return nil
}

// Missing names the secret parameters that have to be given again.
func (h *hosts) Missing(ctx context.Context, i *imprint.Instance) []string {
	if !h.elsewhere(ctx, i.Spec.Host) {
		return h.secrets.Missing(i)
	}
	var missing []string
	for _, p := range i.Spec.Params {
		if p.Visibility == imprint.SecretOnly {
			missing = append(missing, p.Name)
		}
	}
	if missing == nil {
		return nil
	}
	held := h.look(ctx, i).Held
	return slices.DeleteFunc(missing, func(name string) bool { return slices.Contains(held, name) })
}

// Ports are how an instance's channels arrive at its host.
func (h *hosts) Ports(ctx context.Context, i *imprint.Instance) (list []api.Port) {
	if !h.elsewhere(ctx, i.Spec.Host) {
		for _, one := range h.host.Ports(i.ID) {
			list = append(list, api.Port(one))
		}
		return list
	}
	for _, one := range h.look(ctx, i).Ports {
		list = append(list, api.Port(one))
	}
	return list
}

// look asks the host of i what it knows; nothing if it cannot be asked.
func (h *hosts) look(ctx context.Context, i *imprint.Instance) hostapi.Answer {
	ctx, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	a, err := h.api.Call(ctx, i.Spec.Host, hostapi.Call{Kind: hostapi.CallLook, Instance: i.ID, Generation: i.Generation})
	if err != nil {
		h.logger.DebugContext(ctx, "a host did not tell how it serves an instance", "host", i.Spec.Host, "instance", i.ID, "error", err)
	}
	return a
}

// checkSpec refuses a machine of the hypervisors' tenant that is none, or that
// would be a server.
func (h *hosts) checkSpec(ctx context.Context, spec *imprint.Spec) error {
	if spec.Tenant != hostapi.Tenant {
		return nil
	}
	name, err := hostapi.HostOf(spec)
	if err != nil {
		return imprint.Errorf(imprint.Invalid, "reserve", string(hostapi.Tenant)+"/"+string(spec.Name), "%w", err)
	}
	if len(spec.Params) > 0 || spec.UserData != "" {
		return imprint.Errorf(imprint.Invalid, "reserve", "host "+string(name), "a hypervisor has no parameters and no user data").
			WithHint("reserve it with: imprint host add %s", name)
	}
	servers := map[imprint.HostName]logKeys{h.own: {}}
	if _, err := readDocument(ctx, h.store, logsDocument, &servers); err != nil && imprint.KindOf(err) != imprint.NotFound {
		return err
	}
	if _, server := servers[name]; server {
		return imprint.Errorf(imprint.Conflict, "reserve", "host "+string(name), "a server has that name, and serves the instances placed on it").
			WithHint("instances on a server need no imprint host there")
	}
	return nil
}
