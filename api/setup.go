package api

import (
	"context"
	"net/http"

	"imprint"
)

// SetUpInstallation stores what the machine has for its next installation only, in
// the place of what was stored before. Its Generation, Set and By are the server's
// to fill in. Kinds: Invalid if no machine could be given it, or it asks for nothing.
func (c *Client) SetUpInstallation(ctx context.Context, ref string, setup imprint.InstallSetup) (*Instance, error) {
	return call[Instance](ctx, c, http.MethodPut, at(ref)+"/installation/setup", nil, setup)
}

// ClearInstallSetup takes that away. It may be repeated.
func (c *Client) ClearInstallSetup(ctx context.Context, ref string) (*Instance, error) {
	return call[Instance](ctx, c, http.MethodDelete, at(ref)+"/installation/setup", nil, nil)
}
