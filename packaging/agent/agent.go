// Package agent has the files that imprint-agent is installed with.
package agent

import _ "embed"

// Unit is imprint-agent.service, for systemd.
//
//go:embed imprint-agent.service
var Unit []byte
