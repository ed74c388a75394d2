package guest

import (
	"context"
	"errors"
	"io"
	"time"

	"imprint"
	"imprint/internal/triton"
)

// PortName is the name of the virtio-serial port on which the host serves.
const PortName = "org.imprint.boot.0"

const (
	// VolumeLabel is the label of a volume with a payload, in any case.
	VolumeLabel = "IMPRINT"
	// PayloadName is the name, in any case, of the payload in a volume's root.
	PayloadName = "payload.json"
)

// source is a place where a payload may be.
type source interface {
	// String names the place for the console.
	String() string
	// Try looks once and does not wait for something to appear. It fails with
	// kind [imprint.NotFound] if the place does not exist or is empty, and
	// [imprint.Unavailable] if it exists but nobody answers.
	Try(ctx context.Context) (*finding, error)
}

// finding is what a source had: the bytes of a payload, which are not checked
// yet, and on a live channel the open connection.
type finding struct {
	source  string
	payload []byte
	files   imprint.Digest // of those on the volume that brought it; "" elsewhere
	live    metadata       // nil on one-way carriers
	conn    io.Closer      // nil on one-way carriers
}

func (f *finding) Close() error {
	if f.conn == nil {
		return nil
	}
	return f.conn.Close()
}

// answerTime is how long a live channel may take to deliver the payload: time
// enough for 4 KiB at 9600 baud.
const answerTime = 8 * time.Second

// greet asks for the payload over conn, which it closes unless it succeeds.
func greet(ctx context.Context, name string, conn io.ReadWriteCloser) (*finding, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	// A stream that ends is not opened again here: the agent then looks for the
	// payload anew, and finds out who is at the other end now.
	client := triton.NewClient(triton.Once(conn), triton.ClientOptions{})
	host := liveHost{client}
	payload, err := host.Get(ctx, keyPayload)
	if err != nil {
		client.Close()
		conn.Close()
		var said triton.Failure
		if imprint.KindOf(err) == imprint.Unavailable && !errors.As(err, &said) {
			err = imprint.Errorf(imprint.Unavailable, "ask", name, "nobody answers at the host's end")
		}
		return nil, err
	}
	return &finding{source: name, payload: payload, live: host, conn: client}, nil
}

// Pauses between two rounds over all sources.
const (
	roundFirst = 500 * time.Millisecond
	roundMost  = 5 * time.Second
)

// find tries all sources, again and again until one has a payload or wait is
// over; a wait of 0 is one round. It fails with kind [imprint.NotFound].
func (a *Agent) find(ctx context.Context, wait time.Duration) (*finding, error) {
	start := a.clock.system()
	for pause := roundFirst; ; pause = min(2*pause, roundMost) {
		for _, s := range a.sources {
			f, err := s.Try(ctx)
			if err == nil {
				a.console.About(s.String(), "found a payload of %d bytes", len(f.payload))
				return f, nil
			}
			if ctx.Err() != nil {
				return nil, context.Cause(ctx)
			}
			a.console.About(s.String(), "%v", cause(err))
		}
		if a.clock.system().Sub(start)+pause > wait {
			return nil, imprint.Errorf(imprint.NotFound, "find", "payload", "no source has one").
				WithHint("attach a channel or a volume to the machine, or name a file with --payload")
		}
		a.console.About("payload", "none yet; looking again for up to %s", wait)
		if err := a.sleep(ctx, pause); err != nil {
			return nil, err
		}
	}
}

// cause strips the operation and operand from err where the console has just
// named them.
func cause(err error) error {
	var e *imprint.Error
	if errors.As(err, &e) && e.Err != nil {
		return e.Err
	}
	return err
}

// fileSource is a payload that somebody put into a file.
type fileSource struct{ path string }

func (s fileSource) String() string { return "file " + s.path }

func (s fileSource) Try(context.Context) (*finding, error) {
	b, err := readFile(s.path, imprint.MaxPayload)
	if err != nil {
		return nil, err
	}
	return &finding{source: s.String(), payload: b}, nil
}
