package helpervm

import (
	"errors"
	"io"
	"os"
	"sync"

	"imprint"
	"imprint/internal/job"
)

// Stream is what [inside.Env.Stream] is connected to. Both ends are closed with the VM
// at the latest, if they are an [io.Closer]: what blocks has to end then.
type Stream struct {
	In  io.Reader // is read until its end; nil is empty
	Out io.Writer // gets what the task writes, and is closed when the task ends its stream; nil discards
}

// pump moves the bytes in both directions until port ends. What keeps them from being
// all goes to broken, so that half a stream does not pass for a whole one.
func (s Stream) pump(wg *sync.WaitGroup, name string, port *os.File, broken chan<- error) {
	stream := job.NewStream(port)
	wg.Go(func() {
		if s.In != nil {
			if err := feed(stream, s.In); err != nil {
				broken <- imprint.Errorf(imprint.Unavailable, "read", "stream "+name, "%w", err)
				return // without an end, so that the task does not take it for one
			}
		}
		stream.Close() // the task may not have waited for it
	})
	wg.Go(func() {
		out := s.Out
		if out == nil {
			out = io.Discard
		}
		// That no task opened the stream is no fault; that one did not end it is.
		if n, err := io.Copy(out, stream); err != nil && (n > 0 || !errors.Is(err, job.ErrBroken)) {
			broken <- imprint.Errorf(imprint.Unavailable, "write", "stream "+name, "%w", err)
		}
		if c, ok := out.(io.Closer); ok {
			c.Close()
		}
		io.Copy(io.Discard, port) // nothing counts behind the end
	})
}

// feed copies, and returns only what goes wrong with reading: that nobody wants the
// rest is no fault.
func feed(to io.Writer, from io.Reader) error {
	b := make([]byte, 64<<10)
	for {
		n, err := from.Read(b)
		if n > 0 {
			if _, err := to.Write(b[:n]); err != nil {
				return nil
			}
		}
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, os.ErrClosed), errors.Is(err, io.ErrClosedPipe):
			return nil
		case err != nil:
			return err
		}
	}
}

// close wakes what blocks once the VM is gone: the reading end and, if all failed, the
// writing one.
func (s Stream) close(both bool) {
	if c, ok := s.In.(io.Closer); ok {
		c.Close()
	}
	if c, ok := s.Out.(io.Closer); ok && both {
		c.Close()
	}
}
