package job

import (
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"sync"

	"imprint"
)

// maxChunk is the most bytes of a stream that travel in one piece.
const maxChunk = 64 << 10

// Stream is one end of a byte stream in both directions over a virtio-serial port.
// The port itself tells no end of file, so bytes travel in chunks behind their
// length, of four bytes, and a chunk of none is the end.
//
// Reading and writing may happen at the same time, each in one goroutine.
type Stream struct {
	r    io.Reader
	left int // of the chunk that is being read
	end  bool

	mu     sync.Mutex // of writes
	w      io.Writer
	closed bool
}

// NewStream speaks over rw.
func NewStream(rw io.ReadWriter) *Stream { return &Stream{r: rw, w: rw} }

// Read implements [io.Reader]. It fails with kind [imprint.Invalid] for what is no
// stream, and with [ErrBroken] in the chain if the other end went without ending it.
func (s *Stream) Read(b []byte) (int, error) {
	if s.end {
		return 0, io.EOF
	}
	if len(b) == 0 {
		return 0, nil
	}
	if s.left == 0 {
		var head [4]byte
		if _, err := io.ReadFull(s.r, head[:]); err != nil {
			return 0, broken(err)
		}
		n := binary.BigEndian.Uint32(head[:])
		if n > maxChunk {
			return 0, imprint.Errorf(imprint.Invalid, "read", "stream", "a chunk of %d bytes; %d are allowed", n, maxChunk)
		}
		if n == 0 {
			s.end = true
			return 0, io.EOF
		}
		s.left = int(n)
	}
	n, err := s.r.Read(b[:min(len(b), s.left)])
	s.left -= n
	if n > 0 {
		err = nil
	}
	return n, broken(err)
}

// ErrBroken is the end of a port where its stream has none.
var ErrBroken = errors.New("the other end went away before the stream was complete")

func broken(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return imprint.Errorf(imprint.Unavailable, "read", "stream", "%w", ErrBroken)
	}
	return err
}

// ValidStream reports whether name can be that of a stream: a word of up to 32
// lower-case letters, digits and hyphens.
func ValidStream(name string) bool {
	const longest = 32
	return name != "" && len(name) <= longest && strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
}

// Write implements [io.Writer].
func (s *Stream) Write(b []byte) (n int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return 0, io.ErrClosedPipe
	}
	for len(b) > 0 {
		part := b[:min(len(b), maxChunk)]
		if err := s.chunk(part); err != nil {
			return n, err
		}
		n += len(part)
		b = b[len(part):]
	}
	return n, nil
}

func (s *Stream) chunk(b []byte) error {
	_, err := s.w.Write(append(binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(b)), uint32(len(b))), b...))
	return err
}

// Close ends what this end writes; reading goes on.
func (s *Stream) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	return s.chunk(nil)
}
