package reader

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strconv"
	"time"

	"imprint/internal/image/sandbox"
)

// Task is what a sandbox is for.
type Task string

// The tasks.
const (
	Measure Task = "measure" // the stream of a disk of zeros that is as large
	Read    Task = "read"    // the stream of the disk
)

// command is the first argument of a process that is a sandbox, by which [IsMain]
// knows it. No person types it.
const command = "read-image"

// Limits on a sandbox.
const (
	memory    = 768 << 20        // bytes
	cpu       = 30 * time.Minute // of one processor
	imageFile = 3                // the image's descriptor
)

// Args are the arguments of a process that is to carry out a task and stop if the
// virtual disk is not one of at most (when measuring) or exactly (when reading) so
// many bytes.
func Args(task Task, size int64) []string {
	return []string{command, string(task), strconv.FormatInt(size, 10)}
}

// IsMain reports whether a process with these arguments is to be a sandbox.
func IsMain(args []string) bool { return len(args) == 3 && args[0] == command }

// Main is the whole life of such a process: it locks itself up, and only then looks
// at the image, which is its descriptor 3, and writes a stream to its standard
// output. It returns the exit code.
func Main(args []string) int {
	out := NewEncoder(os.Stdout)
	size, err := strconv.ParseInt(args[2], 10, 64)
	if err != nil || size < 0 {
		fmt.Fprintln(os.Stderr, "not for people")
		return 2
	}
	if err := sandbox.Enter(sandbox.Limits{Memory: memory, CPU: cpu}); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 3
	}
	image := os.NewFile(imageFile, "image")
	file, err := image.Seek(0, io.SeekEnd)
	if err == nil {
		err = serve(out, Task(args[1]), image, file, size)
	}
	if err != nil && out.fail(err) != nil {
		return 1
	}
	return 0
}

// serve carries out a task.
func serve(out *Encoder, task Task, r io.ReaderAt, file, size int64) error {
	head := make([]byte, HeadLen)
	n, err := r.ReadAt(head, 0)
	if err := notEOF(err); err != nil {
		return err
	}
	f, err := Recognize(head[:n])
	if err != nil {
		return err
	}
	if f.Compression != "" {
		return serveCompressed(out, task, f.Compression, r, file, size)
	}
	var im layout
	switch f.Name {
	case Qcow2:
		im, err = openQcow2(r, file)
	case VMDK:
		im, err = openVMDK(r, file)
	default:
		err = errors.New("it is raw")
	}
	switch {
	case err != nil:
		return err
	case task == Measure && im.Size() <= size:
		// What is missing in the file is to be found before anything is written.
		if err := im.extents(func(extent) error { return nil }); err != nil {
			return err
		}
		return out.blank(im.Size())
	case task == Measure:
		return out.blank(im.Size())
	case im.Size() != size:
		return fmt.Errorf("its disk has %d bytes, where %d were found before", im.Size(), size)
	}
	if err := out.size(size); err != nil {
		return err
	}
	return serveLayout(out, im)
}

func (e *Encoder) size(n int64) error { return e.Write(Frame{Kind: FrameSize, Length: n}) }

// blank writes the stream of a disk of n zeros.
func (e *Encoder) blank(n int64) error {
	if err := e.size(n); err != nil {
		return err
	}
	s := &sender{out: e}
	if err := s.extent(extent{kind: zeros, length: n}, nil); err != nil {
		return err
	}
	return s.end()
}

func serveCompressed(out *Encoder, task Task, how Compression, r io.ReaderAt, file, size int64) error {
	if task == Measure {
		n, err := unpacked(how, r, file, size, func([]byte) error { return nil })
		if err != nil {
			return err
		}
		return out.blank(n)
	}
	if err := out.size(size); err != nil {
		return err
	}
	s := &sender{out: out}
	n, err := unpacked(how, r, file, size, s.data)
	if err == nil && n != size {
		err = fmt.Errorf("it unpacks to %d bytes, where %d were found before", n, size)
	}
	if err != nil {
		return err
	}
	return s.end()
}

// serveLayout writes the frames of a layout. Packed extents are unpacked by as many
// goroutines as there are processors, while they wait for their turn in the queue.
func serveLayout(out *Encoder, im layout) error {
	type turn struct {
		extent
		buf  []byte
		done chan error // nil unless packed
	}
	workers := runtime.GOMAXPROCS(0)
	queue := make(chan turn, 4*workers)
	bufs := make(chan []byte, 4*workers)
	for range cap(bufs) {
		bufs <- nil // is made when it is first needed
	}
	stop := make(chan struct{})
	failed := make(chan error, 1)
	go func() {
		defer close(queue)
		failed <- im.extents(func(e extent) error {
			t := turn{extent: e}
			if e.kind == packed {
				if t.buf = <-bufs; t.buf == nil {
					t.buf = make([]byte, im.unit())
				}
				t.done = make(chan error, 1)
				go func() { t.done <- im.unpack(t.buf[:e.length], e) }()
			}
			select {
			case queue <- t:
				return nil
			case <-stop:
				return errors.New("stopped")
			}
		})
	}()
	s := &sender{out: out}
	var err error
	for t := range queue {
		if err == nil && t.done != nil {
			err = <-t.done
		}
		if err == nil {
			err = s.extent(t.extent, t.buf)
		}
		if err != nil {
			select {
			case <-stop:
			default:
				close(stop)
			}
		}
		if t.buf != nil {
			bufs <- t.buf
		}
	}
	if err == nil {
		err = <-failed
	}
	if err != nil {
		return err
	}
	return s.end()
}

// sender writes frames, of which those that go on where the last one ended are one.
type sender struct {
	out *Encoder
	at  int64
	f   Frame // not yet written, of zeros or to copy; of length 0 if there is none
}

func (s *sender) extent(e extent, b []byte) error {
	switch {
	case e.kind == packed:
		for b = b[:e.length]; len(b) > 0; {
			n := min(len(b), MaxData)
			if err := s.data(b[:n]); err != nil {
				return err
			}
			b = b[n:]
		}
		return nil
	case e.kind == zeros:
		return s.join(Frame{Kind: FrameZeros, Length: e.length})
	}
	return s.join(Frame{Kind: FrameCopy, Length: e.length, At: e.at})
}

func (s *sender) data(b []byte) error {
	if allZero(b) {
		return s.join(Frame{Kind: FrameZeros, Length: int64(len(b))})
	}
	if err := s.flush(); err != nil {
		return err
	}
	f := Frame{Kind: FrameData, Offset: s.at, Length: int64(len(b)), Data: b}
	s.at += f.Length
	return s.out.Write(f)
}

func (s *sender) join(f Frame) error {
	if s.f.Length > 0 && s.f.Kind == f.Kind && (f.Kind == FrameZeros || s.f.At+s.f.Length == f.At) {
		s.f.Length += f.Length
		s.at += f.Length
		return nil
	}
	if err := s.flush(); err != nil {
		return err
	}
	f.Offset = s.at
	s.at += f.Length
	s.f = f
	return nil
}

func (s *sender) flush() error {
	if s.f.Length == 0 {
		return nil
	}
	f := s.f
	s.f = Frame{}
	return s.out.Write(f)
}

func (s *sender) end() error {
	if err := s.flush(); err != nil {
		return err
	}
	return s.out.Write(Frame{Kind: FrameEnd, Offset: s.at})
}

func allZero(b []byte) bool {
	return len(b) == 0 || b[0] == 0 && b[len(b)-1] == 0 && bytes.Count(b, []byte{0}) == len(b)
}
