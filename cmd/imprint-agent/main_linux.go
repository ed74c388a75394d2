// Command imprint-agent runs inside a machine and gives it its identity: see package
// internal/guest. In a helper VM it is PID 1: see package internal/inside.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"imprint/internal/confine"
	"imprint/internal/guest"
	"imprint/internal/inside"
)

func main() {
	confine.Main()
	if inside.Is() {
		inside.Main(inside.Perform)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	code := guest.Command(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}
