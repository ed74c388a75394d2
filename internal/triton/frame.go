package triton

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"hash/crc32"
	"strconv"

	"imprint"
)

// Limits. A frame is dropped, never buffered, beyond MaxLine.
const (
	MaxValue   = 12 << 10                // bytes of one value in a reply
	MaxPayload = (MaxValue + 2) / 3 * 4  // bytes of a payload in base64: 16 KiB
	MaxLine    = MaxPayload + headerRoom // bytes of a line without its LF
	MaxKey     = 256                     // bytes of a key
	// MaxPut is how many bytes a key and its value may have together in a PUT,
	// where they are encoded twice.
	MaxPut = (MaxValue/4 - 3) * 3

	headerRoom = 64 // "V2 ", length, checksum, id, code and their spaces
)

// Code is the verb of a request or the outcome in a reply.
type Code string

// The codes.
const (
	Get      Code = "GET"
	Put      Code = "PUT"
	Delete   Code = "DELETE"
	Keys     Code = "KEYS"
	Success  Code = "SUCCESS"
	NotFound Code = "NOTFOUND"
	Failed   Code = "FAILURE"
)

// maxCode is the length limit of a code in bytes, known or not.
const maxCode = 16

// Frame is one message of version 2.
type Frame struct {
	ID      uint32 // chosen by the client; a reply repeats it
	Code    Code
	Payload []byte // decoded; empty if there is none
}

const (
	marker    = "V2 "
	hexDigits = 8
)

// AppendFrame appends f as a line, with its LF, to dst. It fails with kind
// [imprint.Exhausted] if the payload exceeds [MaxValue].
func AppendFrame(dst []byte, f Frame) ([]byte, error) {
	if len(f.Payload) > MaxValue || len(f.Code) > maxCode {
		return dst, imprint.Errorf(imprint.Exhausted, "encode", string(f.Code), "%d bytes; a frame carries %d", len(f.Payload), MaxValue)
	}
	size := hexDigits + 1 + len(f.Code)
	if len(f.Payload) > 0 {
		size += 1 + base64.StdEncoding.EncodedLen(len(f.Payload))
	}
	dst = append(dst, marker...)
	dst = strconv.AppendInt(dst, int64(size), 10)
	dst = append(dst, " 00000000 "...) // the checksum is filled in below
	start := len(dst)
	dst = appendHex(dst, f.ID)
	dst = append(dst, ' ')
	dst = append(dst, f.Code...)
	if len(f.Payload) > 0 {
		dst = append(dst, ' ')
		dst = base64.StdEncoding.AppendEncode(dst, f.Payload)
	}
	appendHex(dst[:start-1-hexDigits], crc32.ChecksumIEEE(dst[start:]))
	return append(dst, '\n'), nil
}

// DecodeFrame reads a line without its LF. The payload is decoded into buf,
// which grows as needed and which the frame then shares. Bytes before the frame
// are ignored, because kernel messages end up glued in front of one; base64 has
// no spaces, so the last marker in the line is the frame's. ok is false unless
// the frame is whole: length and checksum agree and its form is exactly the one
// that [AppendFrame] writes, except that a payload which is empty may have its
// space: mdata-client writes one for an empty argument.
func DecodeFrame(line, buf []byte) (f Frame, ok bool) {
	i := bytes.LastIndex(line, []byte(marker))
	if i < 0 || len(line)-i > MaxLine {
		return Frame{}, false
	}
	line = bytes.TrimSuffix(line[i+len(marker):], []byte("\r"))

	size, line, ok := bytes.Cut(line, []byte(" "))
	if !ok {
		return Frame{}, false
	}
	sum, body, ok := bytes.Cut(line, []byte(" "))
	if !ok || !isLength(size, len(body)) {
		return Frame{}, false
	}
	if crc, ok := parseHex(sum); !ok || crc != crc32.ChecksumIEEE(body) {
		return Frame{}, false
	}

	id, rest, ok := bytes.Cut(body, []byte(" "))
	if !ok {
		return Frame{}, false
	}
	if f.ID, ok = parseHex(id); !ok {
		return Frame{}, false
	}
	code, payload, hasPayload := bytes.Cut(rest, []byte(" "))
	if f.Code, ok = parseCode(code); !ok {
		return Frame{}, false
	}
	if !hasPayload {
		return f, true
	}
	f.Payload, ok = decode64(buf[:0], payload)
	return f, ok
}

func appendHex(dst []byte, n uint32) []byte {
	return hex.AppendEncode(dst, []byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)})
}

func parseHex(b []byte) (n uint32, ok bool) {
	if len(b) != hexDigits {
		return 0, false
	}
	for _, c := range b {
		switch {
		case '0' <= c && c <= '9':
			n = n<<4 | uint32(c-'0')
		case 'a' <= c && c <= 'f':
			n = n<<4 | uint32(c-'a'+10)
		default:
			return 0, false
		}
	}
	return n, true
}

// isLength reports whether b is n in decimal.
func isLength(b []byte, n int) bool {
	var digits [20]byte
	return bytes.Equal(b, strconv.AppendInt(digits[:0], int64(n), 10))
}

// parseCode returns the known codes without allocating.
func parseCode(b []byte) (Code, bool) {
	switch Code(b) {
	case Get:
		return Get, true
	case Put:
		return Put, true
	case Delete:
		return Delete, true
	case Keys:
		return Keys, true
	case Success:
		return Success, true
	case NotFound:
		return NotFound, true
	case Failed:
		return Failed, true
	}
	if len(b) == 0 || len(b) > maxCode {
		return "", false
	}
	for _, c := range b {
		if !(c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_') {
			return "", false
		}
	}
	return Code(b), true
}

// decode64 appends what src encodes to dst. encoding/base64 skips CR and LF,
// which this protocol does not allow inside a payload.
func decode64(dst, src []byte) ([]byte, bool) {
	if bytes.ContainsAny(src, "\r\n") {
		return nil, false
	}
	dst, err := base64.StdEncoding.Strict().AppendDecode(dst, src)
	return dst, err == nil
}

// AppendPut appends the payload of a PUT request: key and value, each in base64.
func AppendPut(dst []byte, key string, value []byte) []byte {
	dst = base64.StdEncoding.AppendEncode(dst, []byte(key))
	dst = append(dst, ' ')
	return base64.StdEncoding.AppendEncode(dst, value)
}

// ParsePut splits the payload of a PUT request.
func ParsePut(payload []byte) (key string, value []byte, ok bool) {
	k, v, ok := bytes.Cut(payload, []byte(" "))
	if !ok {
		return "", nil, false
	}
	name, ok := decode64(nil, k)
	if !ok {
		return "", nil, false
	}
	value, ok = decode64([]byte{}, v)
	return string(name), value, ok
}

// lines cuts a stream into lines and keeps at most [MaxLine] bytes of an
// unfinished one.
type lines struct {
	partial []byte
	over    bool // the line is too long; drop it to its end
}

// next returns the first line of chunk, without LF and joined with what came
// before, and what follows it. ok is false when chunk holds no further end of
// line. The line is valid until the next call.
func (l *lines) next(chunk []byte) (line, rest []byte, ok bool) {
	for {
		i := bytes.IndexByte(chunk, '\n')
		if i < 0 {
			if l.over = l.over || len(l.partial)+len(chunk) > MaxLine; l.over {
				l.partial = l.partial[:0]
			} else {
				l.partial = append(l.partial, chunk...)
			}
			return nil, nil, false
		}
		line, rest = chunk[:i], chunk[i+1:]
		if len(l.partial) > 0 {
			line = append(l.partial, line...)
			l.partial = line[:0]
		}
		if l.over || len(line) > MaxLine {
			l.over, chunk = false, rest
			continue
		}
		return line, rest, true
	}
}

// drop forgets an unfinished line.
func (l *lines) drop() { l.partial, l.over = l.partial[:0], false }
