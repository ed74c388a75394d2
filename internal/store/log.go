package store

import (
	"context"
	"log/slog"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// newZap returns a logger for etcd that writes to logger. etcd is talkative: its
// info is about itself (debug to us), and its warnings and errors are about
// slowness and what it will try again (info): what an operation failed of, its
// caller sees. An ordinary shutdown is full of errors; they count as debug
// while quiet is set.
//
// etcd ends the process after a fatal fault, and panics after some others. Here
// fatal is called instead, and then the goroutine ends.
func newZap(logger *slog.Logger, quiet *atomic.Bool, fatal zapcore.CheckWriteHook) *zap.Logger {
	return zap.New(&slogCore{logger.Handler(), quiet},
		zap.WithFatalHook(fatal), zap.WithPanicHook(fatal))
}

// slogCore is a [zapcore.Core] over a [slog.Handler].
type slogCore struct {
	handler slog.Handler
	quiet   *atomic.Bool
}

func (c *slogCore) level(l zapcore.Level) slog.Level {
	switch {
	case l >= zapcore.DPanicLevel:
		return slog.LevelError
	case c.quiet.Load():
		return slog.LevelDebug
	case l >= zapcore.WarnLevel:
		return slog.LevelInfo
	case l == zapcore.InfoLevel:
		return slog.LevelDebug
	}
	return slog.LevelDebug - 4
}

// Enabled implements [zapcore.LevelEnabler].
func (c *slogCore) Enabled(l zapcore.Level) bool {
	return c.handler.Enabled(context.Background(), c.level(l))
}

// With implements [zapcore.Core].
func (c *slogCore) With(fields []zapcore.Field) zapcore.Core {
	return &slogCore{c.handler.WithAttrs(attrs(fields)), c.quiet}
}

// Check implements [zapcore.Core]. Fatal entries are always taken, so that
// their hook sees them.
func (c *slogCore) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if e.Level >= zapcore.DPanicLevel || c.Enabled(e.Level) {
		return ce.AddCore(e, c)
	}
	return ce
}

// Write implements [zapcore.Core].
func (c *slogCore) Write(e zapcore.Entry, fields []zapcore.Field) error {
	r := slog.NewRecord(e.Time, c.level(e.Level), "etcd", 0)
	r.AddAttrs(slog.String("message", e.Message))
	r.AddAttrs(attrs(fields)...)
	return c.handler.Handle(context.Background(), r)
}

// Sync implements [zapcore.Core].
func (c *slogCore) Sync() error { return nil }

// attrs converts zap's fields.
func attrs(fields []zapcore.Field) []slog.Attr {
	list := make([]slog.Attr, 0, len(fields))
	for _, f := range fields {
		if f.Type == zapcore.DurationType {
			list = append(list, slog.Duration(f.Key, time.Duration(f.Integer)))
			continue
		}
		enc := zapcore.NewMapObjectEncoder()
		f.AddTo(enc)
		for key, value := range enc.Fields {
			list = append(list, slog.Any(key, value))
		}
	}
	return list
}
