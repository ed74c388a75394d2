package api

import (
	"errors"

	"imprint"
)

// ProblemType is the media type of a [Problem] (RFC 9457).
const ProblemType = "application/problem+json"

// Problem is an error on the wire: problem details as of RFC 9457, with the
// parts of an [imprint.Error] as extension members.
type Problem struct {
	Title   string `json:"title" doc:"The kind of the error, the same for all of its kind."`
	Status  int    `json:"status" doc:"The HTTP status."`
	Detail  string `json:"detail" doc:"The whole error as one sentence."`
	Kind    string `json:"kind" doc:"The kind again, for programs."`
	Op      string `json:"op,omitempty" doc:"What was tried."`
	Operand string `json:"operand,omitempty" doc:"On what."`
	Cause   string `json:"cause,omitempty" doc:"Why it was not done."`
	Hint    string `json:"hint,omitempty" doc:"What can be done about it."`
	ID      string `json:"id,omitempty" doc:"Under which name an internal error is in the server's log."`
}

// Err returns p as the error that it was on the server.
func (p *Problem) Err() *imprint.Error {
	e := &imprint.Error{Kind: imprint.ParseKind(p.Kind), Op: p.Op, Operand: p.Operand, Hint: p.Hint}
	switch {
	case p.Op == "":
		e.Op, e.Err = "call", errors.New(p.Detail)
	case p.Cause != "":
		e.Err = errors.New(p.Cause)
	}
	return e
}

// Error makes p the error that internal/server answers with.
func (p *Problem) Error() string { return p.Detail }

// GetStatus returns the HTTP status, for huma.
func (p *Problem) GetStatus() int { return p.Status }

// ContentType returns the media type, for huma.
func (p *Problem) ContentType(string) string { return ProblemType }
