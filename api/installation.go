package api

import (
	"context"
	"net/http"

	"imprint"
)

// InstallReport says how far the installation of an instance's disk is. What it says is
// on the timeline, for all who may read that.
type InstallReport struct {
	ID         imprint.Digest      `json:"id" maxLength:"64" doc:"The installation: the SHA-256 of its plan."`
	Generation imprint.Generation  `json:"generation" doc:"Which of the instance's lives is installed."`
	Step       imprint.InstallStep `json:"step" maxLength:"32" enum:"started,fetched,written,repaired,personalized,scripts,finished,failed"`
	Host       string              `json:"host,omitempty" maxLength:"1024" doc:"The machine that installs."`
	Disk       string              `json:"disk,omitempty" maxLength:"1024" doc:"What the disk is called there."`
	Image      string              `json:"image,omitempty" maxLength:"1024" doc:"Where the image came from, without credentials."`
	Digest     imprint.Digest      `json:"digest,omitempty" maxLength:"64" doc:"The SHA-256 of the image."`
	Detail     string              `json:"detail,omitempty" maxLength:"4096" doc:"What there is to say of the step; of a failure, why. The first 1024 bytes are kept."`
}

// ReportInstallation records a step of an installation. It may be repeated. Kinds:
// Invalid for what cannot be reported; Conflict for another generation than the present,
// for a step of an installation that was not started, and for a start when a key has claimed.
func (c *Client) ReportInstallation(ctx context.Context, ref string, r InstallReport) (*Instance, error) {
	return call[Instance](ctx, c, http.MethodPut, at(ref)+"/installation", nil, r)
}
