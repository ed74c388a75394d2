// Package agent has the files that imprint-agent is installed with.
package agent

import _ "embed"

// Unit is imprint-agent.service, for systemd.
//
//go:embed imprint-agent.service
var Unit []byte

// SSHKeysUnit is imprint-ssh-keys.service, which makes SSH host keys where there are none.
//
//go:embed imprint-ssh-keys.service
var SSHKeysUnit []byte
