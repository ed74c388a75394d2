package api

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"

	"imprint"
)

// InstallValues returns the values of the instance's private and secret parameters,
// for whoever installs its disk on the host that serves it: over the server's unix
// socket, while an installation of the present generation is reported to be under
// way. That they were read is on the timeline. Kind: Conflict if no installation is
// under way, for an instance that another host serves, and if a secret value is not at
// hand: the error names it. Ask before the disk is touched.
func (c *Client) InstallValues(ctx context.Context, ref string) (map[string]imprint.Secret, error) {
	var buf bytes.Buffer
	if err := c.document(ctx, http.MethodPost, at(ref)+"/installation/values", nil, &buf, "application/octet-stream"); err != nil {
		return nil, err
	}
	var wire map[string][]byte
	if err := json.Unmarshal(buf.Bytes(), &wire); err != nil {
		return nil, imprint.Errorf(imprint.Unavailable, "read", "values of "+ref, "the answer cannot be understood")
	}
	values := map[string]imprint.Secret{}
	for name, b := range wire {
		values[name] = imprint.NewSecret(b)
	}
	return values, nil
}
