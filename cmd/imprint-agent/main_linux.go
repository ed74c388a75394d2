// Command imprint-agent runs inside a machine and gives it its identity: see package
// internal/guest.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"imprint/internal/guest"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	code := guest.Command(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}
