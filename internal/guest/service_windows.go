package guest

import (
	"context"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/windows/svc"
)

// ServiceName is the name under which the service manager knows the agent.
const ServiceName = "imprint-agent"

// RunService runs the agent under the service manager, if that started the
// program; ok is false if it did not. A service has no console: what the agent
// says goes to agent.log beside the identity.
func RunService(args []string) (code int, ok bool) {
	service, err := svc.IsWindowsService()
	if err != nil || !service {
		return 0, false
	}
	dir := Layout{}.Config()
	if err := makePrivateDir(dir); err != nil {
		return ExitFailed, true
	}
	log, err := os.OpenFile(filepath.Join(dir, "agent.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return ExitFailed, true
	}
	defer log.Close()
	s := &windowsService{args: args, log: log}
	if err := svc.Run(ServiceName, s); err != nil {
		return ExitFailed, true
	}
	return s.code, true
}

// windowsService adapts [Command] to the service manager.
type windowsService struct {
	args []string
	log  io.Writer
	code int
}

// Execute implements [svc.Handler].
func (s *windowsService) Execute(_ []string, requests <-chan svc.ChangeRequest, status chan<- svc.Status) (bool, uint32) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	done := make(chan int, 1)
	go func() { done <- Command(ctx, s.args, io.Discard, s.log) }()
	const accepted = svc.AcceptStop | svc.AcceptShutdown
	status <- svc.Status{State: svc.Running, Accepts: accepted}
	for {
		select {
		case s.code = <-done:
			status <- svc.Status{State: svc.StopPending}
			return true, uint32(s.code) // an exit code of our own
		case r := <-requests:
			switch r.Cmd {
			case svc.Interrogate:
				status <- r.CurrentStatus
			case svc.Stop, svc.Shutdown:
				status <- svc.Status{State: svc.StopPending}
				cancel()
			}
		}
	}
}
