package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"imprint"
	"imprint/internal/image/reader"
	"imprint/internal/image/sandbox"
)

// maxComplaint is how much a sandbox may write to its standard error, in bytes.
const maxComplaint = 4 << 10

// sandboxed lets a sandbox carry out a task on the image, and calls visit with each
// frame of the stream.
func (s *Source) sandboxed(ctx context.Context, task reader.Task, size int64, visit func(reader.Frame) error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	out, in, err := os.Pipe()
	if err != nil {
		return readError(s.Origin, err)
	}
	defer out.Close()
	unix.FcntlInt(out.Fd(), unix.F_SETPIPE_SZ, 1<<20) // fewer turns; it works without as well
	c := sandbox.Command(ctx, reader.Args(task, size)...)
	complaint := &head{}
	c.Stdout, c.Stderr, c.ExtraFiles = in, complaint, []*os.File{s.f}
	err = sandbox.Start(c)
	in.Close()
	if err != nil {
		return imprint.Errorf(imprint.Unavailable, "read", s.Origin, "no sandbox for it: %w", err)
	}
	err = frames(ctx, reader.NewDecoder(out, s.FileSize), visit)
	cancel() // it has nothing more to say
	out.Close()
	died := c.Wait()
	switch {
	case err == nil, errors.Is(err, context.Canceled):
		return err
	case errors.Is(err, reader.ErrLarge):
		return imprint.Errorf(imprint.Exhausted, "unpack", s.Origin, "%w", err)
	case errors.Is(err, reader.ErrImage):
		return imprint.Errorf(imprint.Invalid, "read", s.Origin, "%w", err)
	case errors.Is(err, errStream):
		why := strings.TrimSpace(strings.ToValidUTF8(complaint.String(), "?"))
		if why == "" && died != nil {
			why = died.Error()
		}
		return imprint.Errorf(imprint.Unavailable, "read", s.Origin, "the sandbox in which it is read failed (%s): %w", first(why), err)
	}
	return err
}

// errStream is wrapped by errors of the stream itself.
var errStream = errors.New("no stream")

// frames calls visit with each frame.
func frames(ctx context.Context, d *reader.Decoder, visit func(reader.Frame) error) error {
	for {
		f, err := d.Next()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil && !errors.Is(err, reader.ErrImage) {
			return fmt.Errorf("%w: %w", errStream, err)
		}
		if err != nil {
			return err
		}
		if err := visit(f); err != nil {
			return err
		}
		if f.Kind == reader.FrameEnd {
			return nil
		}
	}
}

// head keeps the beginning of what is written to it.
type head struct{ bytes.Buffer }

func (h *head) Write(b []byte) (int, error) {
	h.Buffer.Write(b[:min(len(b), max(0, maxComplaint-h.Len()))])
	return len(b), nil
}

// ReadFrom keeps [io.Copy] from going around Write.
func (h *head) ReadFrom(r io.Reader) (int64, error) {
	return io.Copy(struct{ io.Writer }{h}, r)
}

// first returns the first line of s.
func first(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}
