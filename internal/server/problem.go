package server

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"net/http"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"imprint"
	"imprint/api"
)

// statusOf is the one mapping from kinds to HTTP statuses.
func statusOf(k imprint.Kind) int {
	switch k {
	case imprint.Invalid:
		return http.StatusUnprocessableEntity
	case imprint.NotFound:
		return http.StatusNotFound
	case imprint.Exists, imprint.Conflict, imprint.Contested:
		return http.StatusConflict
	case imprint.Denied:
		return http.StatusForbidden
	case imprint.Unauthorized:
		return http.StatusUnauthorized
	case imprint.Pending:
		return http.StatusAccepted
	case imprint.Unavailable:
		return http.StatusServiceUnavailable
	case imprint.Exhausted:
		return http.StatusInsufficientStorage
	}
	return http.StatusInternalServerError
}

// problemOf returns err as it goes out. What is internal stays inside: the
// caller gets an identifier, under which the log has all of it.
func (s *Server) problemOf(ctx context.Context, err error) *api.Problem {
	var p *api.Problem
	if errors.As(err, &p) {
		return p
	}
	var e *imprint.Error
	if !errors.As(err, &e) || e.Kind == imprint.Internal {
		id := strings.ToLower(rand.Text()[:12])
		s.Logger.LogAttrs(ctx, slog.LevelError, "internal error", slog.String("id", id), slog.Any("error", err))
		return internalProblem(id)
	}
	p = &api.Problem{
		Title: e.Kind.String(), Status: statusOf(e.Kind), Detail: err.Error(), Kind: e.Kind.String(),
		Op: e.Op, Operand: e.Operand, Hint: imprint.HintOf(e),
	}
	if e.Err != nil {
		p.Cause = e.Err.Error()
	}
	return p
}

func internalProblem(id string) *api.Problem {
	return &api.Problem{
		Title: imprint.Internal.String(), Status: http.StatusInternalServerError, Kind: imprint.Internal.String(),
		Detail: "call server: internal error " + id, Op: "call", Operand: "server", Cause: "internal error " + id, ID: id,
		Hint: "the server's log has the details under that identifier",
	}
}

// foreign rewrites the errors that huma makes of requests it cannot read. Its
// model would echo the offending values, which may be secret, so only places
// and reasons are kept.
func foreign(_ huma.Context, _ string, v any) (any, error) {
	m, ok := v.(*huma.ErrorModel)
	if !ok {
		return v, nil
	}
	kind := imprint.Invalid
	switch m.Status {
	case http.StatusRequestTimeout:
		kind = imprint.Unavailable
	case http.StatusRequestEntityTooLarge:
		kind = imprint.Exhausted
	}
	var faults []string
	for _, d := range m.Errors {
		fault := d.Message
		if d.Location != "" {
			fault = d.Location + ": " + fault
		}
		faults = append(faults, fault)
	}
	cause := m.Detail
	if len(faults) > 0 {
		cause = strings.Join(faults, "; ")
	}
	return &api.Problem{
		Title: kind.String(), Status: m.Status, Kind: kind.String(),
		Detail: "read request: " + cause, Op: "read", Operand: "request", Cause: cause,
		Hint: "the server describes its API at /openapi.json",
	}, nil
}
