package server

import (
	"context"
	"strings"

	"imprint"
	"imprint/api"
)

// InstanceRef is the input of operations on one instance. It is exported because
// huma passes over embedded types that are not.
type InstanceRef struct {
	Ref string `path:"ref" maxLength:"128" doc:"An ID, a name in the default tenant, or tenant/name."`
}

// resolve returns the ID that ref stands for.
func (s *Server) resolve(ctx context.Context, ref string) (imprint.InstanceID, error) {
	if imprint.ValidID(ref) {
		return imprint.InstanceID(ref), nil
	}
	tenant, name, qualified := strings.Cut(ref, "/")
	if !qualified {
		tenant, name = string(imprint.DefaultTenant), ref
	}
	for _, label := range []string{tenant, name} {
		if imprint.CheckLabel("name", label) != nil {
			return "", imprint.Errorf(imprint.NotFound, "find", ref, "it is neither an ID nor a name").
				WithHint("an instance is named by its ID, by NAME, or by TENANT/NAME")
		}
	}
	return s.Instances.Lookup(ctx, imprint.TenantName(tenant), imprint.InstanceName(name))
}

func (s *Server) find(ctx context.Context, ref string) (*imprint.Instance, error) {
	id, err := s.resolve(ctx, ref)
	if err != nil {
		return nil, err
	}
	return s.Instances.Instance(ctx, id)
}

// shown answers with i unless err.
func shown(i *imprint.Instance, err error) (*answer[api.Instance], error) {
	if err != nil {
		return nil, err
	}
	return &answer[api.Instance]{api.FromInstance(i)}, nil
}

type listInput struct {
	Tenant string `query:"tenant" maxLength:"63"`
	Host   string `query:"host" maxLength:"253"`
	After  string `query:"after" maxLength:"512" doc:"The next of an earlier page."`
	Limit  int    `query:"limit" minimum:"1" maximum:"1000" default:"200"`
}

func (s *Server) list(ctx context.Context, in *listInput) (*answer[api.Page], error) {
	limit := in.Limit
	if limit == 0 {
		limit = api.DefaultPage
	}
	all, next, err := s.Instances.List(ctx, api.Query{
		Tenant: imprint.TenantName(in.Tenant), Host: imprint.HostName(in.Host), After: in.After, Limit: limit,
	})
	if err != nil {
		return nil, err
	}
	page := api.Page{Instances: make([]api.Instance, len(all)), Next: next}
	away := map[imprint.HostName]bool{}
	for i, one := range all {
		if _, asked := away[one.Spec.Host]; !asked {
			away[one.Spec.Host] = s.Hosts.Host(ctx, one.Spec.Host).State == api.HostAway
		}
		page.Instances[i] = api.FromInstance(one)
		page.Instances[i].HostAway = away[one.Spec.Host]
	}
	return &answer[api.Page]{page}, nil
}

func (s *Server) get(ctx context.Context, in *InstanceRef) (*answer[api.Instance], error) {
	i, err := s.find(ctx, in.Ref)
	if err != nil {
		return nil, err
	}
	out := api.FromInstance(i)
	out.HostAway = s.Hosts.Host(ctx, i.Spec.Host).State == api.HostAway
	return &answer[api.Instance]{out}, nil
}

func (s *Server) describe(ctx context.Context, in *InstanceRef) (*answer[api.Description], error) {
	i, err := s.find(ctx, in.Ref)
	if err != nil {
		return nil, err
	}
	events, err := s.Instances.Events(ctx, i.ID, 0)
	if err != nil {
		return nil, err
	}
	out := api.Description{
		Instance: api.FromInstance(i), Timeline: events, Host: s.Hosts.Host(ctx, i.Spec.Host),
		Missing: s.Params.Missing(ctx, i), Ports: s.Hosts.Ports(ctx, i),
	}
	out.Instance.HostAway = out.Host.State == api.HostAway
	return &answer[api.Description]{out}, nil
}

type timelineInput struct {
	InstanceRef
	After uint64 `query:"after" doc:"Only events after the one of this number."`
}

func (s *Server) timeline(ctx context.Context, in *timelineInput) (*answer[api.Timeline], error) {
	i, err := s.find(ctx, in.Ref) // an unknown instance is an error, not an empty timeline
	if err != nil {
		return nil, err
	}
	events, err := s.Instances.Events(ctx, i.ID, in.After)
	if err != nil {
		return nil, err
	}
	return &answer[api.Timeline]{api.Timeline{Events: events}}, nil
}

func (s *Server) delete(ctx context.Context, in *InstanceRef) (*nothing, error) {
	id, err := s.resolve(ctx, in.Ref)
	if err != nil {
		return nil, err
	}
	return nil, s.Registry.Delete(ctx, id, callerOf(ctx).name)
}

func (s *Server) approve(ctx context.Context, in *InstanceRef) (*answer[api.Instance], error) {
	id, err := s.resolve(ctx, in.Ref)
	if err != nil {
		return nil, err
	}
	return shown(s.Decisions.Approve(ctx, id, callerOf(ctx).name))
}

type revokeInput struct {
	InstanceRef
	Body api.RevokeRequest
}

func (s *Server) revoke(ctx context.Context, in *revokeInput) (*answer[api.Instance], error) {
	id, err := s.resolve(ctx, in.Ref)
	if err != nil {
		return nil, err
	}
	return shown(s.Decisions.Revoke(ctx, id, in.Body.Reason, callerOf(ctx).name))
}
