package server

import (
	"context"
	"encoding/json"
	"slices"
	"strings"

	"imprint"
	"imprint/api"
)

type paramInput struct {
	InstanceRef
	Name string `path:"name" maxLength:"128"`
	Body api.ParamRequest
}

// putParam sets a value where the visibility of its parameter wants it.
func (s *Server) putParam(ctx context.Context, in *paramInput) (*nothing, error) {
	i, err := s.find(ctx, in.Ref)
	if err != nil {
		return nil, err
	}
	value, by := in.Body.Value.Secret, callerOf(ctx).name
	now, err := declared(i, in.Name)
	switch {
	case err != nil && in.Body.Visibility == "":
		return nil, err
	case err != nil, in.Body.Visibility != "" && in.Body.Visibility != now.Visibility:
		now = imprint.Param{Name: in.Name, Visibility: in.Body.Visibility}
		if err := s.checkDeclaration(ctx, i, now, value); err != nil {
			return nil, err
		}
		return nil, s.Params.Declare(ctx, i.ID, now, value, by)
	}
	if err := s.checkValues(ctx, i, map[string]imprint.Secret{in.Name: value}); err != nil {
		return nil, err
	}
	return nil, s.put(ctx, i, now, value, by)
}

// put sets the value of a parameter that i declares.
func (s *Server) put(ctx context.Context, i *imprint.Instance, p imprint.Param, value imprint.Secret, by string) error {
	switch p.Visibility {
	case imprint.Public:
		return s.Params.PutPublic(ctx, i.ID, p.Name, string(value.Reveal()), by)
	case imprint.Private:
		return s.Params.PutPrivate(ctx, i.ID, p.Name, value, by)
	}
	return s.Params.PutSecret(ctx, i, p.Name, value)
}

// declared returns the parameter of that name. It fails with kind
// [imprint.NotFound].
func declared(i *imprint.Instance, name string) (imprint.Param, error) {
	var names []string
	for _, p := range i.Spec.Params {
		if p.Name == name {
			return p, nil
		}
		names = append(names, p.Name)
	}
	hint := "the instance has no parameters; to declare it say who may read it, with --visibility"
	if len(names) > 0 {
		hint = "the instance has the parameters " + strings.Join(names, ", ") + "; to declare another say who may read it, with --visibility"
	}
	return imprint.Param{}, imprint.Errorf(imprint.NotFound, "set", "parameter "+name, "the spec of %s does not declare it", i.Ref()).WithHint("%s", hint)
}

// checkDeclaration judges the spec that i would have, as if it were created with it.
func (s *Server) checkDeclaration(ctx context.Context, i *imprint.Instance, p imprint.Param, value imprint.Secret) error {
	next := i.Clone()
	if p.Visibility == imprint.Public {
		p.Value = string(value.Reveal())
	}
	if at := slices.IndexFunc(next.Spec.Params, func(q imprint.Param) bool { return q.Name == p.Name }); at >= 0 {
		next.Spec.Params[at] = p
	} else {
		next.Spec.Params = append(next.Spec.Params, p)
	}
	if err := s.Check(ctx, &next.Spec); err != nil {
		return err
	}
	return s.checkValues(ctx, next, map[string]imprint.Secret{p.Name: value})
}

// checkValues judges new values of parameters that i declares.
func (s *Server) checkValues(ctx context.Context, i *imprint.Instance, values map[string]imprint.Secret) error {
	for name, value := range values {
		if n := len(value.Reveal()); n > imprint.MaxParamLen {
			return imprint.Errorf(imprint.Invalid, "set", "parameter "+name, "it has %d bytes; %d are allowed", n, imprint.MaxParamLen)
		}
		next := i.Clone()
		for n := range next.Spec.Params {
			if p := &next.Spec.Params[n]; p.Name == name && p.Visibility == imprint.Public {
				p.Value = string(value.Reveal())
			}
		}
		if err := s.CheckParams(ctx, &next.Spec, values, name); err != nil {
			return err
		}
	}
	return nil
}

type paramRef struct {
	InstanceRef
	Name string `path:"name" maxLength:"128"`
}

// deleteParam removes a parameter, unless the rest of the spec needs it.
func (s *Server) deleteParam(ctx context.Context, in *paramRef) (*nothing, error) {
	i, err := s.find(ctx, in.Ref)
	if err != nil {
		return nil, err
	}
	if _, err := declared(i, in.Name); err != nil {
		return nil, err
	}
	next := i.Clone()
	next.Spec.Params = slices.DeleteFunc(next.Spec.Params, func(p imprint.Param) bool { return p.Name == in.Name })
	err = s.Check(ctx, &next.Spec)
	if err == nil {
		err = s.CheckParams(ctx, &next.Spec, nil, in.Name)
	}
	if err != nil {
		return nil, imprint.Errorf(imprint.Conflict, "remove", "parameter "+in.Name, "%s needs it: %w", i.Ref(), err)
	}
	return nil, s.Params.Remove(ctx, i.ID, in.Name, callerOf(ctx).name)
}

type rebirthInput struct {
	InstanceRef
	Body *api.RebirthRequest
}

// rebirth starts the next generation. All new values are judged before anything
// happens; those that the store keeps are stored before, because they outlive the
// generation, and the secret ones after, because they do not.
func (s *Server) rebirth(ctx context.Context, in *rebirthInput) (*answer[api.Created], error) {
	i, err := s.find(ctx, in.Ref)
	if err != nil {
		return nil, err
	}
	values := map[string]imprint.Secret{}
	if in.Body != nil {
		values = secretsOf(in.Body.Values)
	}
	for name := range values {
		if _, err := declared(i, name); err != nil {
			return nil, err
		}
	}
	if err := s.checkValues(ctx, i, values); err != nil {
		return nil, err
	}
	by := callerOf(ctx).name
	for _, p := range i.Spec.Params {
		if value, given := values[p.Name]; given && p.Visibility != imprint.SecretOnly {
			if err := s.put(ctx, i, p, value, by); err != nil {
				return nil, err
			}
		}
	}
	if i, err = s.Decisions.Rebirth(ctx, i.ID, by); err != nil {
		return nil, err
	}
	for _, p := range i.Spec.Params {
		if value, given := values[p.Name]; given && p.Visibility == imprint.SecretOnly {
			// The generation has begun: as at its creation, a value that its host did
			// not take is missing, and can be given again.
			if err := s.Params.PutSecret(ctx, i, p.Name, value); err != nil {
				s.Logger.WarnContext(ctx, "secret parameter was not taken by its host", "instance", i.ID, "param", p.Name, "error", err)
			}
		}
	}
	return &answer[api.Created]{api.Created{Instance: api.FromInstance(i), Missing: s.Params.Missing(ctx, i)}}, nil
}

func secretsOf(values map[string]api.Value) map[string]imprint.Secret {
	out := map[string]imprint.Secret{}
	for name, v := range values {
		out[name] = v.Secret
	}
	return out
}

// installValues hands out what the scripts of an installation are given: only to
// this machine, while one is under way, and only all of it.
func (s *Server) installValues(ctx context.Context, in *InstanceRef) (*document, error) {
	i, err := s.find(ctx, in.Ref)
	if err != nil {
		return nil, err
	}
	if !callerOf(ctx).local {
		return nil, imprint.Errorf(imprint.Denied, "hand out values of", i.Ref(), "they are for whoever installs it on this machine").
			WithHint("install it on the host that serves it, with imprint install")
	}
	conflict := func(format string, args ...any) *imprint.Error {
		return imprint.Errorf(imprint.Conflict, "install", i.Ref(), format, args...)
	}
	under := i.Installation
	switch {
	case s.Hosts.Host(ctx, i.Spec.Host).State != api.HostHere:
		return nil, conflict("it is placed on %s, which has its secret values", i.Spec.Host).WithHint("install it there")
	case under == nil || under.Generation != i.Generation || under.Step == imprint.InstallFinished || under.Step == imprint.InstallFailed || i.Enrolment.Claim != nil:
		return nil, conflict("no installation of generation %d is under way, for which its values could be needed", i.Generation)
	}
	if missing := s.Params.Missing(ctx, i); len(missing) > 0 {
		return nil, conflict("its secret parameter %s is not at hand", strings.Join(missing, ", ")).
			WithHint("a reinstallation needs secrets given again: imprint set %s %s", i.Ref(), missing[0])
	}
	values, err := s.Params.Values(ctx, i, callerOf(ctx).name)
	if err != nil {
		return nil, err
	}
	wire := map[string][]byte{}
	for name, v := range values {
		wire[name] = v.Reveal()
	}
	b, err := json.Marshal(wire)
	if err != nil {
		return nil, imprint.Errorf(imprint.Internal, "encode", "values", "%w", err)
	}
	return &document{"application/octet-stream", b}, nil
}
