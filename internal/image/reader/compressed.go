package reader

import (
	"bufio"
	"compress/bzip2"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/therootcompany/xz"
)

// maxWindow is how far back compressed data may refer, in bytes: as much as
// "xz -9" and "zstd --long" take.
const maxWindow = 128 << 20

// Compression is what may be around a raw image.
type Compression string

// The kinds of compression.
const (
	Gzip  Compression = "gzip"
	XZ    Compression = "xz"
	Zstd  Compression = "zstd"
	Bzip2 Compression = "bzip2"
)

// decompress returns a reader of what is in a compressed file of so many bytes.
func decompress(how Compression, r io.ReaderAt, file int64) (io.ReadCloser, error) {
	in := bufio.NewReaderSize(io.NewSectionReader(r, 0, file), 256<<10)
	switch how {
	case Gzip:
		return gzip.NewReader(in)
	case XZ:
		d, err := xz.NewReader(in, maxWindow)
		if err != nil {
			return nil, err
		}
		return io.NopCloser(d), nil
	case Zstd:
		d, err := zstd.NewReader(in, zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderConcurrency(2))
		if err != nil {
			return nil, err
		}
		return d.IOReadCloser(), nil
	}
	return io.NopCloser(bzip2.NewReader(in)), nil
}

// unpacked calls yield with all that is in a compressed file, in blocks that are of
// MaxData bytes but for the last, and returns their bytes. It fails if they are more
// than limit, or an image that is not raw.
func unpacked(how Compression, r io.ReaderAt, file, limit int64, yield func([]byte) error) (int64, error) {
	in, err := decompress(how, r, file)
	if err != nil {
		return 0, damaged("%v", err)
	}
	defer in.Close()
	var size int64
	b := make([]byte, MaxData)
	for {
		n, err := io.ReadFull(in, b)
		if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF || err == io.ErrUnexpectedEOF && !atEnd(in) {
			return 0, damaged("%v", err)
		}
		if size == 0 {
			if f, err := Recognize(b[:n]); err != nil || f != (Format{Name: Raw}) {
				return 0, errors.Join(fmt.Errorf("it is a %s file around %s; only a raw image may be inside", how, f), err)
			}
		}
		if size += int64(n); size > limit {
			return 0, tooLarge(limit)
		}
		if n > 0 {
			if err := yield(b[:n]); err != nil {
				return 0, err
			}
		}
		if err != nil {
			return size, nil
		}
	}
}

// atEnd reports whether r ended, rather than what it reads from: both are
// [io.ErrUnexpectedEOF] to [io.ReadFull].
func atEnd(r io.Reader) bool {
	var b [1]byte
	_, err := r.Read(b[:])
	return err == io.EOF
}

func tooLarge(limit int64) error {
	return refusal{fmt.Sprintf("it unpacks to more than the %d bytes that there are for it", limit), true}
}
