package server

import (
	"bytes"
	"encoding/json"
	"regexp"
	"strings"
	"testing"

	"imprint/api"
)

// The document is OpenAPI 3.1, describes every route with its parameters and
// errors, has no dangling reference, and is the one that the server serves.
func TestOpenAPI(t *testing.T) {
	t.Parallel()
	doc := must[[]byte](t)(OpenAPI())
	var o struct {
		OpenAPI string
		Paths   map[string]map[string]struct {
			OperationID, Summary, Description string
			Parameters                        []struct {
				Name, In string
				Required bool
			}
			RequestBody *struct{ Content map[string]any }
			Responses   map[string]struct {
				Description string
				Content     map[string]struct{ Schema json.RawMessage }
			}
		}
		Components struct{ Schemas map[string]json.RawMessage }
	}
	if err := json.Unmarshal(doc, &o); err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(o.OpenAPI, "3.1.") {
		t.Errorf("version %s", o.OpenAPI)
	}
	ids := map[string]bool{}
	routes := new(Server).routes()
	for _, r := range routes {
		op, ok := o.Paths[r.path][strings.ToLower(r.method)]
		if !ok {
			t.Errorf("%s %s is not described", r.method, r.path)
			continue
		}
		if op.Summary == "" || op.OperationID == "" || ids[op.OperationID] || !strings.Contains(op.Description, r.access.String()) {
			t.Errorf("%s %s: id %q, summary %q, description %q", r.method, r.path, op.OperationID, op.Summary, op.Description)
		}
		ids[op.OperationID] = true
		for _, m := range regexp.MustCompile(`\{(\w+)\}`).FindAllStringSubmatch(r.path, -1) {
			found := false
			for _, p := range op.Parameters {
				found = found || p.Name == m[1] && p.In == "path" && p.Required
			}
			if !found {
				t.Errorf("%s %s: the parameter %s is not described", r.method, r.path, m[1])
			}
		}
		var problems, good int
		for code, resp := range op.Responses {
			switch {
			case code[0] == '2':
				good++
			case resp.Content[api.ProblemType].Schema != nil && resp.Description != "":
				problems++
			default:
				t.Errorf("%s %s: status %s is no problem document", r.method, r.path, code)
			}
		}
		if good != 1 || problems < 2 {
			t.Errorf("%s %s: %d successes and %d errors are described", r.method, r.path, good, problems)
		}
	}
	if len(ids) != len(routes) {
		t.Errorf("%d operations for %d routes", len(ids), len(routes))
	}
	for _, m := range regexp.MustCompile(`"\$ref": "#/components/schemas/(\w+)"`).FindAllSubmatch(doc, -1) {
		if o.Components.Schemas[string(m[1])] == nil {
			t.Errorf("the schema %s is missing", m[1])
		}
	}
	if o.Components.Schemas["ErrorModel"] != nil {
		t.Error("the document has an error model that is never sent")
	}

	r := start(t)
	var served bytes.Buffer
	if err := r.client.OpenAPI(t.Context(), &served); err != nil || !bytes.Equal(served.Bytes(), doc) {
		t.Errorf("the server serves another document: %v", err)
	}
}
