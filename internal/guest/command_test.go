//go:build linux

package guest

import (
	"bytes"
	"context"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func runCommand(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	code = Command(ctx, args, &out, &errs)
	return code, out.String(), errs.String()
}

func TestCommandLine(t *testing.T) {
	t.Parallel()
	m := newMachine(t, nil)
	for _, tt := range []struct {
		args   []string
		code   int
		stderr string
	}{
		{[]string{"status"}, ExitNoPayload, "imprint-agent: read identity: this machine is not enrolled"},
		{[]string{"param", "db-key"}, ExitNoPayload, "no such file"},
		{[]string{"param", "../../etc/shadow"}, ExitUnusable, "parameter name"},
		{[]string{"param"}, ExitUsage, "0 arguments; 1 expected"},
		{[]string{"renew"}, ExitNoPayload, "not enrolled"},
		{[]string{"run", "--wait", "0s", "--payload", filepath.Join(m.root, "none.json")}, ExitNoPayload, "no source has one"},
		{[]string{"run", "--no-such-flag"}, ExitUsage, "no-such-flag"},
		{[]string{"dance"}, ExitUsage, `there is no command "dance"`},
		{[]string{"status", "-h"}, ExitOK, "-root DIR"},
	} {
		args := tt.args
		if args[0] != "dance" {
			args = append([]string{args[0], "--root", m.root}, args[1:]...)
		}
		code, _, stderr := runCommand(t, args...)
		if code != tt.code || !strings.Contains(stderr, tt.stderr) {
			t.Errorf("%q: exit code %d, %q; want %d, %q", tt.args, code, stderr, tt.code, tt.stderr)
		}
	}
	if code, stdout, _ := runCommand(t, "version"); code != ExitOK || stdout == "" {
		t.Errorf("version: %d, %q", code, stdout)
	}
}

func TestStatusAndParamOfAnEnrolledMachine(t *testing.T) {
	t.Parallel()
	host := newFakeHost(t)
	m := newMachine(t, host)
	// The command uses the machine's own clock, so that the enrolment must too.
	m.now = time.Now()
	host.now = m.now
	host.payload.Time = m.now
	m.mustRun()
	code, stdout, stderr := runCommand(t, "status", "--root", m.root)
	if code != ExitOK {
		t.Errorf("status: %d, %s", code, stderr)
	}
	for _, want := range []string{"web-1", string(testID), "generation     1", "1001, valid", "db-key, secret, available", "virtio port"} {
		if !strings.Contains(stdout, want) {
			t.Errorf("status lacks %q:\n%s", want, stdout)
		}
	}
	if strings.Contains(stdout, "canary") {
		t.Errorf("status shows a value:\n%s", stdout)
	}
	if code, stdout, stderr := runCommand(t, "param", "--root", m.root, "db-key"); code != ExitOK || stdout != "secret-canary" {
		t.Errorf("param: %d, %q, %s", code, stdout, stderr)
	}
}
