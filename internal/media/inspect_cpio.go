package media

import (
	"bytes"
	"strconv"
	"strings"

	"imprint/internal/cpio"
)

const cpioHeader = 110 // bytes: a magic number and 13 numbers in hexadecimal

// maxArchives is at how many places something like an archive is looked into.
const maxArchives = 256

// cpio reads the cpio archive at the end of an initial RAM disk; nil if there is
// none. What is before it, compressed or not, is not looked into.
func (in *reader) cpio() (*Contents, error) {
	if in.size > 1<<31 {
		return nil, nil
	}
	tries := 0
	for at := int64(0); at+cpioHeader <= in.size && tries < maxArchives; at += initrdAlign {
		b, err := in.bytes(at, 6)
		if err != nil {
			return nil, err
		}
		if string(b) != "070701" {
			continue
		}
		tries++
		files, ok, err := in.archive(at)
		if err != nil {
			return nil, err
		}
		if ok {
			in.files = files
			return &Contents{Format: "cpio", Start: at, Names: "cpio"}, nil
		}
	}
	return nil, nil
}

// archive reads the archive at an offset. ok is false if that is no whole one, or
// something other than zeros is behind it.
func (in *reader) archive(at int64) (files map[string][]byte, ok bool, err error) {
	left, seen, old := in.left, in.seen, in.files
	defer func() { in.left, in.seen, in.files = left, seen, old }()
	in.files = map[string][]byte{}
	start := at
	for {
		if at+cpioHeader > in.size {
			return nil, false, nil
		}
		h, err := in.bytes(at, cpioHeader)
		if err != nil {
			return nil, false, err
		}
		number := func(field int) int64 {
			n, err := strconv.ParseUint(string(h[6+8*field:14+8*field]), 16, 32)
			if err != nil {
				return -1
			}
			return int64(n)
		}
		mode, size, length := number(1), number(6), number(11)
		if string(h[:6]) != "070701" || mode < 0 || size < 0 || length < 1 || length > 4096 || at+cpioHeader+length > in.size {
			return nil, false, nil
		}
		text, err := in.bytes(at+cpioHeader, length)
		if err != nil {
			return nil, false, err
		}
		name, _, terminated := strings.Cut(string(text), "\x00") // the kernel's name ends there
		if !terminated {
			return nil, false, nil
		}
		at = up4(at-start+cpioHeader+length) + start
		if at > in.size-size {
			return nil, false, nil
		}
		if name == cpio.Trailer {
			next, end := in.afterZeros(at)
			if end || next%4 != 0 {
				return in.files, end, nil
			}
			at, start = next, next // another archive, or what is none
			continue
		}
		if err := in.room(size); err != nil {
			return nil, false, err
		}
		if mode&0o170000 == 0o100000 {
			data, err := in.bytes(at, size)
			if err != nil {
				return nil, false, err
			}
			in.files[name] = data // a later one of the same name replaces it, as in the kernel
		}
		at = up4(at-start+size) + start
	}
}

func up4(n int64) int64 { return (n + 3) &^ 3 }

// afterZeros returns where something else is from at on; end is true if nothing is.
func (in *reader) afterZeros(at int64) (next int64, end bool) {
	for at < in.size {
		b, err := in.bytes(at, min(64<<10, in.size-at))
		if err != nil {
			return at, false
		}
		if i := bytes.IndexFunc(b, func(c rune) bool { return c != 0 }); i >= 0 {
			return at + int64(i), false
		}
		at += int64(len(b))
	}
	return at, true
}
