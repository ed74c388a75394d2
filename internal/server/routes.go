package server

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"reflect"
	"strconv"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"imprint"
	"imprint/api"
)

// route is one row of the table of operations.
type route struct {
	method, path string
	access       Role
	id, summary  string
	// fails lists the kinds of errors beside those that every operation has.
	fails []imprint.Kind
	// media is the type of an answer that is not JSON.
	media string
	// body is the largest request body in bytes; 0 is api.MaxBody.
	body int64
	add  func(huma.API, huma.Operation)
}

// routes is the whole control API. Who may call an operation is its third
// column; a test walks everything that is registered and compares.
func (s *Server) routes() []route {
	const (
		get, put, post, del = http.MethodGet, http.MethodPut, http.MethodPost, http.MethodDelete
		one                 = api.Prefix + "/instances/{ref}"
		pipe                = one + "/pipes/{pipe}"
		ca                  = api.Prefix + "/ca/{tenant}"
	)
	var (
		unknown = []imprint.Kind{imprint.NotFound}
		input   = []imprint.Kind{imprint.NotFound, imprint.Invalid}
		move    = []imprint.Kind{imprint.NotFound, imprint.Conflict}
		report  = []imprint.Kind{imprint.NotFound, imprint.Invalid, imprint.Conflict}
		rebirth = []imprint.Kind{imprint.NotFound, imprint.Conflict, imprint.Invalid}
		full    = []imprint.Kind{imprint.NotFound, imprint.Invalid, imprint.Exhausted}
		create  = []imprint.Kind{imprint.Invalid, imprint.Exists, imprint.NotFound, imprint.Exhausted}
	)
	return []route{
		{get, "/openapi.json", Anyone, "get-openapi", "This document", nil, "application/json", 0, handle(s, s.describeAPI)},
		{get, "/healthz", Anyone, "get-health", "Whether the server runs", nil, "text/plain", 0, handle(s, s.healthy)},
		{get, "/readyz", Anyone, "get-readiness", "Whether the server can do its work", nil, "text/plain", 0, handle(s, s.ready)},
		{get, api.Prefix + "/info", Reader, "get-info", "Who answers, and as whom it knows the caller", nil, "", 0, handle(s, s.info)},

		{get, api.Prefix + "/instances", Reader, "list-instances", "List instances, page by page", nil, "", 0, handle(s, s.list)},
		{post, api.Prefix + "/instances", Operator, "create-instance", "Reserve an instance", create, "", api.MaxCreateBody, handle(s, s.create)},
		{get, one, Reader, "get-instance", "Get an instance", unknown, "", 0, handle(s, s.get)},
		{del, one, Operator, "delete-instance", "Delete an instance; its revocations stay", unknown, "", 0, handle(s, s.delete)},
		{get, one + "/description", Reader, "describe-instance", "Get an instance with its timeline and what it lacks", unknown, "", 0, handle(s, s.describe)},
		{get, one + "/timeline", Reader, "get-timeline", "Get the kept events of an instance", unknown, "", 0, handle(s, s.timeline)},
		{put, one + "/params/{name}", Operator, "put-param", "Set the value of a parameter, or declare it", input, "", 0, handle(s, s.putParam)},
		{del, one + "/params/{name}", Operator, "delete-param", "Remove a parameter and its value", move, "", 0, handle(s, s.deleteParam)},
		{get, api.Prefix + "/watch", Reader, "watch", "Follow changes as lines of JSON; empty lines are heartbeats", unknown, "application/x-ndjson", 0, handle(s, s.watch)},

		{post, one + "/approve", Operator, "approve-instance", "Consent to the first certificate", move, "", 0, handle(s, s.approve)},
		{post, one + "/revoke", Operator, "revoke-instance", "Take the present generation's credentials back", move, "", 0, handle(s, s.revoke)},
		{post, one + "/rebirth", Operator, "rebirth-instance", "Start the next generation, with new values of parameters if there are some", rebirth, "", api.MaxCreateBody, handle(s, s.rebirth)},
		{post, one + "/token", Operator, "create-token", "Hand out a one-time token", move, "application/octet-stream", 0, handle(s, s.token)},
		{post, one + "/payload", Operator, "create-payload", "Hand out the payload with a one-time token in it", move, "application/octet-stream", 0, handle(s, s.payload)},
		{post, one + "/medium", Operator, "create-medium", "Hand out what a medium holds, as a tar archive; its global header says what was left out", move, "application/octet-stream", 0, handle(s, s.medium)},
		{put, one + "/media/{number}", Operator, "settle-medium", "Report what became of a medium that was given out", input, "", 0, handle(s, s.settleMedium)},
		{put, one + "/installation", Operator, "report-installation", "Report a step of an installation of the instance's disk", report, "", 0, handle(s, s.reportInstallation)},
		{put, one + "/installation/setup", Operator, "set-up-installation", "Store what the machine has for its next installation only", input, "", 0, handle(s, s.setUpInstallation)},
		{del, one + "/installation/setup", Operator, "clear-install-setup", "Take that away; it may be repeated", unknown, "", 0, handle(s, s.clearInstallSetup)},
		{post, one + "/installation/values", Operator, "hand-out-install-values", "Hand out the values of private and secret parameters for an installation that is under way, to this machine only", move, "application/octet-stream", 0, handle(s, s.installValues)},
		{get, one + "/pipes", Reader, "list-pipes", "List an instance's message pipes and what waits in them", unknown, "", 0, handle(s, s.pipes)},
		{post, pipe, Operator, "write-pipe", "Write a message for the machine", full, "", imprint.MaxMessage + 1, handle(s, s.writePipe)},
		{get, pipe, Operator, "read-pipe", "Read the machine's oldest message, which stays; empty if none came", unknown, "application/octet-stream", 0, handle(s, s.readPipe)},
		{del, pipe + "/{receipt}", Operator, "take-message", "Take the message that was read out of the pipe; it may be repeated", unknown, "", 0, handle(s, s.takePipe)},

		{get, ca, Reader, "get-ca", "Describe a tenant's CA", unknown, "", 0, handle(s, s.authority)},
		{get, ca + "/bundle", Anyone, "get-ca-bundle", "Get the CA's certificates as PEM, the root first", unknown, "application/x-pem-file", 0, handle(s, s.bundle)},
		{get, ca + "/crl", Anyone, "get-crl", "Get the current revocation list in DER", unknown, "application/pkix-crl", 0, handle(s, s.crl)},
		{post, ca + "/reissue", Operator, "reissue-ca", "Make a new issuing CA", move, "", 0, handle(s, s.reissue)},
		{post, ca + "/root-key/export", Operator, "export-root-key", "Export the root key as PEM", unknown, "application/octet-stream", 0, handle(s, s.exportRoot)},
		{del, ca + "/root-key", Operator, "drop-root-key", "Remove the root key from the server", unknown, "", 0, handle(s, s.dropRoot)},
		{post, api.Prefix + "/seal/rotate", Operator, "rotate-sealing", "Give everything that is sealed a new key-encryption key", nil, "", 0, handle(s, s.rotateSealing)},
		{get, api.Prefix + "/log", Reader, "get-log", "Get a copy of the issuance log as a tar archive", nil, "application/x-tar", 0, handle(s, s.log)},
	}
}

// answer is the output of an operation whose answer is JSON.
type answer[T any] struct{ Body T }

// document is the output of an operation whose answer is bare bytes.
type document struct {
	ContentType string `header:"Content-Type"`
	Body        []byte
}

// nothing is the output of an operation that answers 204 No Content.
type nothing struct{}

// handle makes the registration of a handler: every error that it returns goes
// out as a [api.Problem].
func handle[I, O any](s *Server, f func(context.Context, *I) (*O, error)) func(huma.API, huma.Operation) {
	return func(to huma.API, op huma.Operation) {
		huma.Register(to, op, func(ctx context.Context, in *I) (*O, error) {
			out, err := f(ctx, in)
			if err != nil {
				return nil, s.problemOf(ctx, err)
			}
			return out, nil
		})
	}
}

// controlMux puts the table onto a mux, and returns its description too.
func (s *Server) controlMux() (*guardedMux, *huma.OpenAPI) {
	table := s.routes()
	access := map[string]Role{}
	for _, r := range table {
		access[r.method+" "+r.path] = r.access
	}
	mux := s.guardedMux(access)

	config := huma.DefaultConfig("imprint control API", "1")
	config.Info.Description = "Every operation may fail with the kinds unauthorized and denied (who calls), invalid (what is sent), " +
		"unavailable (a dependency) and internal. An instance is named by its ID, by its name in the default tenant, or by tenant/name, percent-encoded."
	config.OpenAPIPath, config.DocsPath, config.SchemasPath = "", "", ""
	config.CreateHooks = nil // no $schema fields: they would need the paths above
	config.Transformers = []huma.Transformer{foreign}
	config.FieldsOptionalByDefault = true // the handlers check with better words
	to := humago.New(mux, config)
	problem := to.OpenAPI().Components.Schemas.Schema(reflect.TypeFor[api.Problem](), true, "Problem")
	for _, r := range table {
		r.add(to, r.operation(problem))
	}
	delete(to.OpenAPI().Components.Schemas.Map(), "ErrorModel") // huma's own, which never goes out
	return mux, to.OpenAPI()
}

// operation describes r to huma.
func (r route) operation(problem *huma.Schema) huma.Operation {
	op := huma.Operation{
		OperationID: r.id, Method: r.method, Path: r.path, Summary: r.summary,
		Description:  "Access: " + r.access.String() + ".",
		MaxBodyBytes: r.body,
		Responses:    map[string]*huma.Response{},
	}
	if op.MaxBodyBytes == 0 {
		op.MaxBodyBytes = api.MaxBody
	}
	if r.media != "" {
		op.Responses["200"] = &huma.Response{Content: map[string]*huma.MediaType{
			r.media: {Schema: &huma.Schema{Type: huma.TypeString, Format: "binary"}},
		}}
	}
	kinds := append([]imprint.Kind{imprint.Unavailable, imprint.Internal}, r.fails...)
	if r.access > Anyone {
		kinds = append(kinds, imprint.Unauthorized, imprint.Denied)
	}
	if r.method != http.MethodGet || r.fails != nil {
		kinds = append(kinds, imprint.Invalid)
	}
	for _, k := range kinds {
		code := strconv.Itoa(statusOf(k))
		op.Responses[code] = &huma.Response{
			Description: http.StatusText(statusOf(k)),
			Content:     map[string]*huma.MediaType{api.ProblemType: {Schema: problem}},
		}
	}
	return op
}

func encodeOpenAPI(o *huma.OpenAPI) ([]byte, error) {
	b, err := json.Marshal(o)
	if err != nil {
		return nil, imprint.Errorf(imprint.Internal, "encode", "OpenAPI document", "%w", err)
	}
	var out bytes.Buffer
	if err := json.Indent(&out, b, "", "  "); err != nil {
		return nil, imprint.Errorf(imprint.Internal, "encode", "OpenAPI document", "%w", err)
	}
	out.WriteByte('\n')
	return out.Bytes(), nil
}

func (s *Server) describeAPI(context.Context, *struct{}) (*document, error) {
	return &document{"application/json", s.openapi}, nil
}
