package server

import (
	"context"

	"imprint/api"
)

type mediumInput struct {
	InstanceRef
	Body api.MediumRequest
}

func (s *Server) medium(ctx context.Context, in *mediumInput) (*document, error) {
	id, err := s.resolve(ctx, in.Ref)
	if err != nil {
		return nil, err
	}
	m, err := s.Credentials.Medium(ctx, id, in.Body, callerOf(ctx).name)
	if err != nil {
		return nil, err
	}
	return credential(m.Encode())
}

type mediumOutcomeInput struct {
	InstanceRef
	Number uint32 `path:"number"`
	Body   api.MediumOutcome
}

func (s *Server) settleMedium(ctx context.Context, in *mediumOutcomeInput) (*nothing, error) {
	id, err := s.resolve(ctx, in.Ref)
	if err != nil {
		return nil, err
	}
	return nil, s.Credentials.SettleMedium(ctx, id, in.Number, in.Body.State, in.Body.Detail, callerOf(ctx).name)
}
