// Command imprint-agent runs inside a machine and gives it its identity: see package
// internal/guest.
package main

import (
	"context"
	"os"
	"os/signal"

	"imprint/internal/guest"
)

func main() {
	if code, ok := guest.RunService(os.Args[1:]); ok {
		os.Exit(code)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	code := guest.Command(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}
