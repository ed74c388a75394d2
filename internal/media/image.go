package media

import (
	"bufio"
	"cmp"
	"io"
	"slices"

	"imprint"
)

// image is the bytes of a medium: pieces, which do not overlap, and zeros.
type image struct {
	size   int64
	pieces []piece
}

type piece struct {
	at   int64
	data []byte
}

// put adds data at an offset.
func (m *image) put(at int64, data []byte) {
	if len(data) > 0 {
		m.pieces = append(m.pieces, piece{at, data})
	}
}

// sparse is a new file, in which what is not written is zero.
type sparse interface {
	io.WriterAt
	Truncate(size int64) error
}

// writeTo writes the image. A w that can be truncated, such as a new file, gets
// the zeros as holes. It fails with kind [imprint.Unavailable].
func (m *image) writeTo(w io.Writer) error {
	err := m.write(w)
	if err != nil {
		return imprint.Errorf(imprint.Unavailable, "write", "medium", "%w", err)
	}
	return nil
}

// writeBytes writes a medium that is all in b.
func writeBytes(w io.Writer, b []byte) error {
	m := image{size: int64(len(b))}
	m.put(0, b)
	return m.writeTo(w)
}

func (m *image) write(w io.Writer) error {
	slices.SortFunc(m.pieces, func(a, b piece) int { return cmp.Compare(a.at, b.at) })
	if f, ok := w.(sparse); ok {
		if err := f.Truncate(m.size); err != nil {
			return err
		}
		return m.writeRuns(f)
	}
	out := bufio.NewWriterSize(w, 64<<10)
	var zeros [4096]byte
	at := int64(0)
	fill := func(to int64) error {
		for at < to {
			n, err := out.Write(zeros[:min(int64(len(zeros)), to-at)])
			if at += int64(n); err != nil {
				return err
			}
		}
		return nil
	}
	for _, p := range m.pieces {
		if err := fill(p.at); err != nil {
			return err
		}
		n, err := out.Write(p.data)
		if at += int64(n); err != nil {
			return err
		}
	}
	if err := fill(m.size); err != nil {
		return err
	}
	return out.Flush()
}

// What is at most maxGap bytes apart goes into one call, of at most maxRun bytes: a
// medium has many small pieces.
const (
	maxGap = 4 << 10
	maxRun = 32 << 10
)

// writeRuns writes the pieces, which are in order, and leaves out what is between
// those that are far apart.
func (m *image) writeRuns(w io.WriterAt) error {
	run := make([]byte, 0, min(m.size, maxRun))
	start := int64(0)
	flush := func() error {
		_, err := w.WriteAt(run, start)
		run = run[:0]
		return err
	}
	for _, p := range m.pieces {
		gap := p.at - start - int64(len(run))
		if len(run) > 0 && (gap > maxGap || int64(len(run))+gap+int64(len(p.data)) > maxRun) {
			if err := flush(); err != nil {
				return err
			}
		}
		if len(p.data) > maxRun {
			if _, err := w.WriteAt(p.data, p.at); err != nil {
				return err
			}
			continue
		}
		if len(run) == 0 {
			start, gap = p.at, 0
		}
		run = append(append(run, make([]byte, gap)...), p.data...)
	}
	if len(run) == 0 {
		return nil
	}
	return flush()
}
