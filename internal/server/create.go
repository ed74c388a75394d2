package server

import (
	"context"
	"net/netip"
	"slices"
	"strings"

	"imprint"
	"imprint/api"
)

type createInput struct{ Body api.CreateRequest }

// create checks all that can be checked before anything is written, so that a
// dry run refuses whatever the real one would.
func (s *Server) create(ctx context.Context, in *createInput) (*answer[api.Created], error) {
	id, spec := in.Body.ID, in.Body.Spec
	if id != "" {
		if err := imprint.CheckID("id", string(id)); err != nil {
			return nil, err
		}
	}
	s.complete(&spec)
	if err := s.Check(ctx, &spec); err != nil {
		return nil, err
	}
	tenant, err := s.Tenant(spec.Tenant)
	if err != nil {
		return nil, err
	}
	if err := withinTenant(&spec, &tenant); err != nil {
		return nil, err
	}
	private, secret, err := sortValues(&spec, in.Body.Values)
	if err != nil {
		return nil, err
	}
	if err := s.CheckParams(ctx, &spec, secretsOf(in.Body.Values), ""); err != nil {
		return nil, err
	}
	if in.Body.DryRun {
		return s.dryRun(ctx, &imprint.Instance{ID: id, Spec: spec, Generation: 1, Enrolment: imprint.Enrolment{State: imprint.Reserved}}, secret)
	}
	i, err := s.Registry.Create(ctx, id, spec, private, callerOf(ctx).name)
	if err != nil {
		return nil, err
	}
	for name, value := range secret {
		// The instance exists: a value that its host did not take is reported as
		// missing rather than as a failure, and can be given again.
		if err := s.Params.PutSecret(ctx, i, name, value); err != nil {
			s.Logger.WarnContext(ctx, "secret parameter was not taken by its host", "instance", i.ID, "param", name, "error", err)
		}
	}
	return &answer[api.Created]{api.Created{Instance: api.FromInstance(i), Missing: s.Params.Missing(ctx, i)}}, nil
}

// complete gives absent fields their defaults.
func (s *Server) complete(spec *imprint.Spec) {
	if spec.Tenant == "" {
		spec.Tenant = imprint.DefaultTenant
	}
	if spec.Host == "" {
		spec.Host = s.Host
	}
	if len(spec.Channels) == 0 {
		spec.Channels = []imprint.ChannelKind{imprint.VirtioSerial, imprint.Serial2}
	}
}

// dryRun answers for i, which is not created.
func (s *Server) dryRun(ctx context.Context, i *imprint.Instance, secret map[string]imprint.Secret) (*answer[api.Created], error) {
	spec := &i.Spec
	if i.ID != "" {
		if err := s.Registry.CheckID(ctx, i); err != nil {
			return nil, err
		}
	}
	_, err := s.Instances.Lookup(ctx, spec.Tenant, spec.Name)
	switch {
	case err == nil:
		return nil, imprint.Errorf(imprint.Exists, "create", string(spec.Name), "tenant %s has an instance of that name", spec.Tenant).
			WithHint("choose another name, or see: imprint describe %s", spec.Name)
	case imprint.KindOf(err) != imprint.NotFound:
		return nil, err
	}
	var missing []string
	for _, p := range spec.Params {
		if _, given := secret[p.Name]; p.Visibility == imprint.SecretOnly && !given {
			missing = append(missing, p.Name)
		}
	}
	return &answer[api.Created]{api.Created{Instance: api.FromInstance(i), Missing: missing}}, nil
}

// sortValues parts values by the visibility of their parameters. Every private
// parameter has one; a secret one may be given later.
func sortValues(spec *imprint.Spec, values map[string]api.Value) (private, secret map[string]imprint.Secret, err error) {
	private, secret = map[string]imprint.Secret{}, map[string]imprint.Secret{}
	refuse := func(name, format string, args ...any) *imprint.Error {
		return imprint.Errorf(imprint.Invalid, "create", "parameter "+name, format, args...)
	}
	for _, p := range spec.Params {
		v, given := values[p.Name]
		switch {
		case given && p.Visibility == imprint.Public:
			return nil, nil, refuse(p.Name, "it is public, so its value belongs into the spec")
		case given && len(v.Reveal()) > imprint.MaxParamLen:
			return nil, nil, refuse(p.Name, "it has %d bytes; %d are allowed", len(v.Reveal()), imprint.MaxParamLen)
		case given && p.Visibility == imprint.Private:
			private[p.Name] = v.Secret
		case given:
			secret[p.Name] = v.Secret
		case p.Visibility == imprint.Private:
			return nil, nil, refuse(p.Name, "it is private and has no value").WithHint("give its value in the manifest, or where the manifest refers to")
		}
	}
	for name := range values {
		if !slices.ContainsFunc(spec.Params, func(p imprint.Param) bool { return p.Name == name }) {
			return nil, nil, refuse(name, "it has a value but is not in the spec")
		}
	}
	return private, secret, nil
}

// withinTenant refuses names and addresses that the tenant's CA is not allowed
// to certify, and says what it is allowed.
func withinTenant(spec *imprint.Spec, tenant *imprint.Tenant) error {
	for _, name := range spec.DNSNames {
		if !slices.ContainsFunc(tenant.Domains, func(d string) bool { return name == d || strings.HasSuffix(name, "."+d) }) {
			return outside(tenant, name, "domains", tenant.Domains)
		}
	}
	for _, ip := range spec.IPs {
		if !slices.ContainsFunc(tenant.Networks, func(p netip.Prefix) bool { return p.Contains(ip) }) {
			var allowed []string
			for _, p := range tenant.Networks {
				allowed = append(allowed, p.String())
			}
			return outside(tenant, ip.String(), "networks", allowed)
		}
	}
	return nil
}

func outside(tenant *imprint.Tenant, what, of string, allowed []string) error {
	err := imprint.Errorf(imprint.Invalid, "certify", what, "it is outside the %s of tenant %s", of, tenant.Name)
	if len(allowed) == 0 {
		return err.WithHint("the tenant has no %s at all", of)
	}
	return err.WithHint("the tenant's %s are %s", of, strings.Join(allowed, ", "))
}
