package reader

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
)

// maxFuzzed bounds the virtual disks that are read whole.
const maxFuzzed = 4 << 20

// streamOf carries out a task on a file, as in the sandbox, and follows the stream: what
// it ends with is the end, or what is wrong with the image.
func streamOf(t *testing.T, task Task, file []byte, size int64) (found int64, disk []byte, err error) {
	t.Helper()
	var out bytes.Buffer
	e := NewEncoder(&out)
	if err := serve(e, task, bytes.NewReader(file), int64(len(file)), size); err != nil {
		if err := e.fail(err); err != nil {
			t.Fatal(err)
		}
	}
	d := NewDecoder(&out, int64(len(file)))
	for {
		f, err := d.Next()
		if err != nil && !errors.Is(err, ErrImage) {
			t.Fatalf("the stream is no stream: %v", err)
		}
		if err != nil {
			return found, nil, err
		}
		switch f.Kind {
		case FrameSize:
			found = f.Length
		case FrameZeros:
			if task == Read {
				disk = append(disk, make([]byte, f.Length)...)
			}
		case FrameCopy:
			disk = append(disk, file[f.At:f.At+f.Length]...)
		case FrameData:
			disk = append(disk, f.Data...)
		case FrameEnd:
			if out.Len() > 0 {
				t.Fatalf("%d bytes behind the end", out.Len())
			}
			return found, disk, nil
		}
	}
}

// images are what tools made, small ones.
func images(f *testing.F) [][]byte {
	names, err := filepath.Glob("testdata/images/*")
	if err != nil || len(names) == 0 {
		f.Fatalf("%d images, %v", len(names), err)
	}
	var all [][]byte
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		all = append(all, b)
	}
	return all
}

// FuzzImage: whatever a file has, what is said of it follows the rules of the stream,
// and names bytes of the file only. Two readings find the same disk.
func FuzzImage(f *testing.F) {
	for _, b := range images(f) {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, file []byte) {
		if len(file) > 1<<20 {
			return
		}
		size, _, err := streamOf(t, Measure, file, maxFuzzed)
		if err != nil || size > maxFuzzed {
			return
		}
		_, disk, err := streamOf(t, Read, file, size)
		if err == nil && int64(len(disk)) != size {
			t.Fatalf("%d bytes of %d", len(disk), size)
		}
		_, again, err2 := streamOf(t, Read, file, size)
		if !bytes.Equal(disk, again) || (err == nil) != (err2 == nil) {
			t.Fatalf("two readings differ: %v, %v", err, err2)
		}
	})
}

// FuzzStream: whoever took over the sandbox may write what he wants; what comes out of
// the decoder covers a disk once, in order, and names bytes of the file only.
func FuzzStream(f *testing.F) {
	for _, b := range images(f) {
		var out bytes.Buffer
		serve(NewEncoder(&out), Read, bytes.NewReader(b), int64(len(b)), 65536)
		f.Add(out.Bytes(), int64(len(b)))
	}
	f.Fuzz(func(t *testing.T, b []byte, file int64) {
		file &= 1<<40 - 1
		d := NewDecoder(bytes.NewReader(b), file)
		size, at := int64(-1), int64(0)
		for {
			frame, err := d.Next()
			if err != nil {
				if err == io.EOF {
					t.Fatal("an end that is no end")
				}
				return
			}
			switch {
			case frame.Kind == FrameSize && size < 0:
				if size = frame.Length; size < 0 || size > MaxDisk {
					t.Fatalf("a disk of %d bytes", size)
				}
				continue
			case frame.Offset != at:
				t.Fatalf("from %d on to %d", at, frame.Offset)
			case frame.Kind == FrameEnd:
				if at != size {
					t.Fatalf("an end at %d of %d", at, size)
				}
				return
			}
			if at += frame.Length; frame.Length <= 0 || at > size {
				t.Fatalf("up to %d of %d", at, size)
			}
			if frame.Kind == FrameCopy && (frame.At < 0 || frame.At+frame.Length > file) {
				t.Fatalf("byte %d of a file of %d", frame.At+frame.Length, file)
			}
			if frame.Kind == FrameData && int64(len(frame.Data)) != frame.Length {
				t.Fatalf("%d bytes of data, which are %d", frame.Length, len(frame.Data))
			}
		}
	})
}
