package guest

import (
	"bufio"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"imprint"
)

const (
	// hookTime is how long one program may run.
	hookTime = time.Minute
	// maxHookOutput is how many bytes of a program's output are shown.
	maxHookOutput = 64 << 10
)

// The reasons for which programs run, in IMPRINT_EVENT.
const (
	eventEnrolled = "enrolled"
	eventRenewed  = "renewed"
)

// runHooks runs the programs in enrolled.d in the order of their names. They
// learn the names of files and no secret. One that fails is reported and does
// not keep the others from running: what it wanted to set up is its own affair.
// After a crash in the middle they all run again.
func (a *Agent) runHooks(ctx context.Context, event string, p *imprint.Payload) error {
	entries, err := os.ReadDir(a.layout.Hooks()) // sorted by name
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return imprint.Errorf(imprint.Internal, "list", a.layout.Hooks(), "%w", err)
	}
	env := append(os.Environ(),
		"IMPRINT_EVENT="+event,
		"IMPRINT_INSTANCE="+string(p.Instance),
		"IMPRINT_NAME="+string(p.Name),
		"IMPRINT_TENANT="+string(p.Tenant),
		"IMPRINT_KEY="+a.layout.Key(),
		"IMPRINT_CERT="+a.layout.Cert(),
		"IMPRINT_CA="+a.layout.CA(),
		"IMPRINT_PARAMS="+a.layout.Params(),
	)
	for _, e := range entries {
		path := filepath.Join(a.layout.Hooks(), e.Name())
		if reason := refuseHook(path); reason != "" {
			a.console.Say("%s is not run: %s", path, reason)
			continue
		}
		if err := a.runHook(ctx, path, env); err != nil {
			a.console.Say("%s: %v", path, err)
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	return nil
}

// runHook runs one program and shows what it prints, line by line.
func (a *Agent) runHook(ctx context.Context, path string, env []string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, a.hookTime, errHookTime)
	defer cancel()
	output, sink, err := os.Pipe()
	if err != nil {
		return err
	}
	defer output.Close()
	cmd := hookCommand(ctx, path)
	cmd.Env = env
	cmd.Dir = a.layout.Config()
	cmd.Stdout, cmd.Stderr = sink, sink
	a.console.Say("running %s", path)
	err = cmd.Start()
	sink.Close()
	if err != nil {
		return err
	}
	// A child that the program left behind may keep the pipe open for ever.
	stop := context.AfterFunc(ctx, func() { output.Close() })
	defer stop()
	lines := bufio.NewScanner(io.LimitReader(output, maxHookOutput))
	for lines.Scan() {
		a.console.Say("%s: %s", filepath.Base(path), lines.Text())
	}
	io.Copy(io.Discard, output) // what is beyond the limit; ends when the program does
	if err := cmd.Wait(); err != nil {
		return errors.Join(err, context.Cause(ctx))
	}
	return nil
}

var errHookTime = errors.New("it took too long and was ended")
