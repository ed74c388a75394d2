package signer

import (
	"crypto"
	"encoding/binary"
	"encoding/hex"
	"io"

	"imprint"
)

// version is the only version of the protocol so far.
const version = 1

// Limits of the protocol, in bytes after the length field.
const (
	maxRequest = 128
	maxReply   = 8 << 10
	// maxKeys keeps a list within one reply; a P-384 key takes 122 bytes.
	maxKeys = 64
)

// op says what a request asks for.
type op uint8

const (
	opList op = 1
	opSign op = 2
)

// status says how a request went.
type status uint8

const (
	statusOK         status = 0
	statusBadRequest status = 1
	statusUnknownKey status = 2
	statusFailed     status = 3
)

// hashOf returns the hash that a number in a request stands for; 0 if none.
func hashOf(n uint8) crypto.Hash {
	switch n {
	case 1:
		return crypto.SHA256
	case 2:
		return crypto.SHA384
	case 3:
		return crypto.SHA512
	}
	return 0
}

// hashNumber is the inverse of hashOf; ok is false for other hashes.
func hashNumber(h crypto.Hash) (n uint8, ok bool) {
	for n := uint8(1); hashOf(n) != 0; n++ {
		if hashOf(n) == h {
			return n, true
		}
	}
	return 0, false
}

// request is what a client asks for. Key, Hash and Digest are for opSign.
type request struct {
	Op     op
	Key    imprint.KeyID
	Hash   crypto.Hash
	Digest []byte
}

// append adds the request's frame to b.
func (r request) append(b []byte) ([]byte, error) {
	body := []byte{version, byte(r.Op)}
	if r.Op == opSign {
		key, err := hex.DecodeString(string(r.Key))
		if err != nil || len(key) != 32 {
			return nil, imprint.Errorf(imprint.Invalid, "sign", "digest", "%q is not a key", r.Key)
		}
		n, ok := hashNumber(r.Hash)
		if !ok || len(r.Digest) != r.Hash.Size() {
			return nil, imprint.Errorf(imprint.Invalid, "sign", "digest", "%d bytes; only SHA-256, SHA-384 and SHA-512 digests are signed", len(r.Digest))
		}
		body = append(append(append(body, key...), n), r.Digest...)
	}
	return append(binary.BigEndian.AppendUint16(b, uint16(len(body))), body...), nil
}

// parseRequest reads the bytes of a request after the length. It fails with kind
// [imprint.Invalid].
func parseRequest(b []byte) (request, error) {
	bad := func(why string) (request, error) {
		return request{}, imprint.Errorf(imprint.Invalid, "read", "request", "%s", why)
	}
	if len(b) < 2 || b[0] != version {
		return bad("not version 1 of the protocol")
	}
	switch r := (request{Op: op(b[1])}); r.Op {
	case opList:
		if len(b) != 2 {
			return bad("bytes after its end")
		}
		return r, nil
	case opSign:
		if len(b) < 2+32+1 {
			return bad("too short")
		}
		r.Key = imprint.KeyID(hex.EncodeToString(b[2:34]))
		r.Hash, r.Digest = hashOf(b[34]), b[35:]
		if r.Hash == 0 || len(r.Digest) != r.Hash.Size() {
			return bad("not a digest of SHA-256, SHA-384 or SHA-512")
		}
		return r, nil
	}
	return bad("unknown operation")
}

// reply is the answer to a request.
type reply struct {
	Status status
	Body   []byte
}

// append adds the reply's frame to b.
func (r reply) append(b []byte) []byte {
	b = binary.BigEndian.AppendUint16(b, uint16(2+len(r.Body)))
	return append(append(b, version, byte(r.Status)), r.Body...)
}

// parseReply reads the bytes of a reply after the length. It fails with kind
// [imprint.Invalid].
func parseReply(b []byte) (reply, error) {
	if len(b) < 2 || b[0] != version || status(b[1]) > statusFailed {
		return reply{}, imprint.Errorf(imprint.Invalid, "read", "reply", "not version 1 of the protocol")
	}
	return reply{status(b[1]), b[2:]}, nil
}

// appendKey adds one key to the body of a list.
func appendKey(b, spki []byte) []byte {
	return append(binary.BigEndian.AppendUint16(b, uint16(len(spki))), spki...)
}

// parseKeys reads the body of a list. It fails with kind [imprint.Invalid].
func parseKeys(b []byte) (keys [][]byte, err error) {
	for len(b) > 0 {
		if len(b) < 2 || len(b) < 2+int(binary.BigEndian.Uint16(b)) || len(keys) == maxKeys {
			return nil, imprint.Errorf(imprint.Invalid, "read", "list of keys", "malformed")
		}
		n := 2 + int(binary.BigEndian.Uint16(b))
		keys = append(keys, b[2:n])
		b = b[n:]
	}
	return keys, nil
}

// readFrame reads one frame of at most limit bytes after its length. At the end
// of the stream between two frames it returns [io.EOF].
func readFrame(r io.Reader, limit int) ([]byte, error) {
	var head [2]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	n := int(binary.BigEndian.Uint16(head[:]))
	if n > limit {
		return nil, imprint.Errorf(imprint.Invalid, "read", "frame", "%d bytes; the limit is %d", n, limit)
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	return body, nil
}
