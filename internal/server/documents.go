package server

import (
	"context"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"imprint"
	"imprint/api"
)

const octets = "application/octet-stream"

type tokenInput struct {
	InstanceRef
	Body api.TokenRequest
}

func (s *Server) token(ctx context.Context, in *tokenInput) (*document, error) {
	id, err := s.resolve(ctx, in.Ref)
	if err != nil {
		return nil, err
	}
	return credential(s.Credentials.Token(ctx, id, time.Duration(in.Body.TTL)))
}

func (s *Server) payload(ctx context.Context, in *tokenInput) (*document, error) {
	id, err := s.resolve(ctx, in.Ref)
	if err != nil {
		return nil, err
	}
	return credential(s.Credentials.Payload(ctx, id, time.Duration(in.Body.TTL)))
}

// credential answers with a secret as the whole body: the places where one
// leaves the server are the callers of this function.
func credential(v imprint.Secret, err error) (*document, error) {
	if err != nil {
		return nil, err
	}
	return &document{octets, v.Reveal()}, nil
}

// TenantRef is the input of operations on one tenant.
type TenantRef struct {
	Tenant string `path:"tenant" maxLength:"63"`
}

func (in *TenantRef) name() imprint.TenantName { return imprint.TenantName(in.Tenant) }

func (s *Server) authority(ctx context.Context, in *TenantRef) (*answer[api.Authority], error) {
	return described(s.Authorities.Authority(ctx, in.name()))
}

func described(a *api.Authority, err error) (*answer[api.Authority], error) {
	if err != nil {
		return nil, err
	}
	return &answer[api.Authority]{*a}, nil
}

func (s *Server) bundle(ctx context.Context, in *TenantRef) (*document, error) {
	b, err := s.Authorities.Bundle(ctx, in.name())
	if err != nil {
		return nil, err
	}
	return &document{"application/x-pem-file", b}, nil
}

func (s *Server) crl(ctx context.Context, in *TenantRef) (*document, error) {
	b, err := s.Authorities.CRL(ctx, in.name())
	if err != nil {
		return nil, err
	}
	return &document{"application/pkix-crl", b}, nil
}

func (s *Server) exportRoot(ctx context.Context, in *TenantRef) (*document, error) {
	return credential(s.RootKeys.Export(ctx, in.name(), callerOf(ctx).name))
}

func (s *Server) dropRoot(ctx context.Context, in *TenantRef) (*nothing, error) {
	return nil, s.RootKeys.Drop(ctx, in.name(), callerOf(ctx).name)
}

type reissueInput struct {
	TenantRef
	Body api.ReissueRequest
}

func (s *Server) reissue(ctx context.Context, in *reissueInput) (*answer[api.Authority], error) {
	return described(s.RootKeys.Reissue(ctx, in.name(), in.Body.RootKey.Secret, callerOf(ctx).name))
}

func (s *Server) rotateSealing(ctx context.Context, _ *struct{}) (*answer[api.Sealing], error) {
	key, instances, err := s.Sealing.Rotate(ctx, callerOf(ctx).name)
	if err != nil {
		return nil, err
	}
	return &answer[api.Sealing]{Body: api.Sealing{Key: key, Instances: instances}}, nil
}

func (s *Server) log(context.Context, *struct{}) (*huma.StreamResponse, error) {
	return &huma.StreamResponse{Body: func(hc huma.Context) {
		hc.SetHeader("Content-Type", "application/x-tar")
		out := newStream(hc)
		if err := s.Log.WriteTar(hc.Context(), out); err != nil {
			s.Logger.WarnContext(hc.Context(), "copy of the issuance log was broken off", "error", err)
			// The status has gone out; a connection that is cut is what tells the client.
			panic(http.ErrAbortHandler)
		}
	}}, nil
}
