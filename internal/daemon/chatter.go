package daemon

import (
	"context"
	"log/slog"
)

// Chatter returns a logger for a library that is talkative about itself: its
// information goes to logger for debugging only.
func Chatter(logger *slog.Logger) *slog.Logger { return slog.New(chatter{logger.Handler()}) }

type chatter struct{ slog.Handler }

func (c chatter) lower(l slog.Level) slog.Level {
	if l == slog.LevelInfo {
		return slog.LevelDebug
	}
	return l
}

// Enabled implements [slog.Handler].
func (c chatter) Enabled(ctx context.Context, l slog.Level) bool {
	return c.Handler.Enabled(ctx, c.lower(l))
}

// Handle implements [slog.Handler].
func (c chatter) Handle(ctx context.Context, r slog.Record) error {
	r.Level = c.lower(r.Level)
	return c.Handler.Handle(ctx, r)
}

// WithAttrs implements [slog.Handler].
func (c chatter) WithAttrs(a []slog.Attr) slog.Handler { return chatter{c.Handler.WithAttrs(a)} }

// WithGroup implements [slog.Handler].
func (c chatter) WithGroup(name string) slog.Handler { return chatter{c.Handler.WithGroup(name)} }
