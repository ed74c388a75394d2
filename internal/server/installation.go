package server

import (
	"context"

	"imprint"
	"imprint/api"
)

type installationInput struct {
	InstanceRef
	Body api.InstallReport
}

func (s *Server) reportInstallation(ctx context.Context, in *installationInput) (*answer[api.Instance], error) {
	id, err := s.resolve(ctx, in.Ref)
	if err != nil {
		return nil, err
	}
	b := &in.Body
	return shown(s.Installations.ReportInstallation(ctx, id, imprint.Installation{
		ID: b.ID, Generation: b.Generation, Step: b.Step, Host: b.Host, Disk: b.Disk, Image: b.Image, Digest: b.Digest, Detail: b.Detail,
		By: callerOf(ctx).name,
	}))
}

type setupInput struct {
	InstanceRef
	Body imprint.InstallSetup
}

func (s *Server) setUpInstallation(ctx context.Context, in *setupInput) (*answer[api.Instance], error) {
	id, err := s.resolve(ctx, in.Ref)
	if err != nil {
		return nil, err
	}
	return shown(s.Installations.Setup(ctx, id, &in.Body, callerOf(ctx).name))
}

func (s *Server) clearInstallSetup(ctx context.Context, in *InstanceRef) (*answer[api.Instance], error) {
	id, err := s.resolve(ctx, in.Ref)
	if err != nil {
		return nil, err
	}
	return shown(s.Installations.Setup(ctx, id, nil, callerOf(ctx).name))
}
