package reader

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
)

// Limits on the stream from the sandbox.
const (
	MaxData  = 1 << 20 // bytes of one data frame
	maxText  = 512     // bytes of a message
	MaxDisk  = 1 << 46 // bytes of a virtual disk: 64 TiB
	frameLen = 25      // bytes of a frame's head
)

// FrameKind says what a [Frame] is.
type FrameKind uint8

// The kinds of frames. A stream is a [FrameSize], frames that together cover the
// virtual disk from its first byte to its last, in order and without a gap, and a
// [FrameEnd]; or it ends early with a [FrameError].
const (
	FrameSize  FrameKind = 1 + iota // Length is the virtual disk's
	FrameZeros                      // the bytes are zeros
	FrameCopy                       // the bytes are in the image's file from At on
	FrameData                       // the bytes are in Data
	FrameEnd
	FrameError // Text is why the image cannot be read
)

// Frame is one message of a stream.
type Frame struct {
	Kind   FrameKind
	Offset int64 // of the virtual disk
	Length int64
	At     int64
	Data   []byte // valid until the next frame is read
}

// Why an image cannot be read, as [errors.Is] finds it in what [Decoder.Next] returns
// for a [FrameError].
var (
	ErrImage = errors.New("the image is at fault")
	ErrLarge = errors.New("it needs a larger disk") // is an ErrImage as well
)

// refusal is why an image cannot be read, in the words of the sandbox.
type refusal struct {
	text  string
	large bool
}

func (r refusal) Error() string { return r.text }

func (r refusal) Is(err error) bool { return err == ErrImage || err == ErrLarge && r.large }

// Encoder writes a stream.
type Encoder struct {
	w *bufio.Writer
}

// NewEncoder returns an encoder to w.
func NewEncoder(w io.Writer) *Encoder { return &Encoder{bufio.NewWriterSize(w, 64<<10)} }

// Write writes a frame. A [FrameError]'s text is its Data.
func (e *Encoder) Write(f Frame) error {
	var head [frameLen]byte
	head[0] = byte(f.Kind)
	binary.LittleEndian.PutUint64(head[1:], uint64(f.Offset))
	binary.LittleEndian.PutUint64(head[9:], uint64(f.Length))
	binary.LittleEndian.PutUint64(head[17:], uint64(f.At))
	if _, err := e.w.Write(head[:]); err != nil {
		return err
	}
	if _, err := e.w.Write(f.Data); err != nil {
		return err
	}
	if f.Kind == FrameSize || f.Kind == FrameEnd || f.Kind == FrameError {
		return e.w.Flush()
	}
	return nil
}

// fail writes a [FrameError].
func (e *Encoder) fail(err error) error {
	text := err.Error()
	text = text[:min(len(text), maxText)]
	f := Frame{Kind: FrameError, Length: int64(len(text)), Data: []byte(text)}
	if errors.Is(err, ErrLarge) {
		f.At = 1
	}
	return e.Write(f)
}

// Decoder reads a stream that nobody vouches for: whatever it is, [Decoder.Next]
// returns frames that follow the rules, or fails.
type Decoder struct {
	r    io.Reader
	file int64 // bytes of the image's file
	size int64 // of the virtual disk; -1 until it is known
	at   int64 // up to which the disk was covered
	data []byte
}

// NewDecoder returns a decoder of what comes from r about an image whose file has so
// many bytes.
func NewDecoder(r io.Reader, file int64) *Decoder {
	return &Decoder{r: r, file: file, size: -1}
}

// Next returns the next frame. It fails with [ErrImage] if the image is at fault, and
// otherwise if the stream is: then whoever wrote it was taken over, or died.
func (d *Decoder) Next() (Frame, error) {
	var head [frameLen]byte
	if _, err := io.ReadFull(d.r, head[:]); err != nil {
		return Frame{}, broken("it ends early: %w", err)
	}
	f := Frame{
		Kind:   FrameKind(head[0]),
		Offset: int64(binary.LittleEndian.Uint64(head[1:])),
		Length: int64(binary.LittleEndian.Uint64(head[9:])),
		At:     int64(binary.LittleEndian.Uint64(head[17:])),
	}
	switch {
	case f.Kind == FrameError:
		return Frame{}, d.refusal(f.Length, f.At == 1)
	case d.size < 0:
		if f.Kind != FrameSize || f.Offset != 0 || f.At != 0 || f.Length < 0 || f.Length > MaxDisk {
			return Frame{}, broken("it does not begin with the size of a disk")
		}
		d.size = f.Length
		return f, nil
	case f.Offset != d.at:
		return Frame{}, broken("it goes from byte %d on to byte %d", d.at, f.Offset)
	case f.Kind == FrameEnd:
		if f.Length != 0 || d.at != d.size {
			return Frame{}, broken("it ends at byte %d of %d", d.at, d.size)
		}
		return f, nil
	case f.Length <= 0 || f.Length > d.size-d.at:
		return Frame{}, broken("it has %d bytes where %d are left", f.Length, d.size-d.at)
	}
	d.at += f.Length
	switch f.Kind {
	case FrameZeros:
		return f, nil
	case FrameCopy:
		if f.At < 0 || f.At > d.file || f.Length > d.file-f.At {
			return Frame{}, broken("it names byte %d of a file of %d", f.At, d.file)
		}
		return f, nil
	case FrameData:
		if f.Length > MaxData {
			return Frame{}, broken("a frame has %d bytes", f.Length)
		}
		if d.data == nil {
			d.data = make([]byte, MaxData)
		}
		f.Data = d.data[:f.Length]
		if _, err := io.ReadFull(d.r, f.Data); err != nil {
			return Frame{}, broken("it ends early: %w", err)
		}
		return f, nil
	}
	return Frame{}, broken("it has a frame of kind %d", f.Kind)
}

// refusal reads a message. What is not printable is not shown.
func (d *Decoder) refusal(n int64, large bool) error {
	if n <= 0 || n > maxText {
		return broken("a message has %d bytes", n)
	}
	text := make([]byte, n)
	if _, err := io.ReadFull(d.r, text); err != nil {
		return broken("it ends early: %w", err)
	}
	return refusal{strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, string(text)), large}
}

func broken(format string, args ...any) error {
	return fmt.Errorf("the stream from the sandbox is broken: "+format, args...)
}
