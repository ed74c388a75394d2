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
	m, err := s.Credentials.Medium(ctx, id, in.Body)
	if err != nil {
		return nil, err
	}
	return credential(m.Encode())
}
