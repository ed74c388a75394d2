package image

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"hash"
	"io"
	"path"
	"strings"

	"imprint"
)

// maxSums is how many bytes a list of sums or a signature may have.
const maxSums = 1 << 20

// sum is what a file has to hash to.
type sum struct {
	algorithm string // "sha256" or "sha512"
	value     []byte
}

// String returns the form that [imprint.Image] has.
func (s sum) String() string { return s.algorithm + ":" + hex.EncodeToString(s.value) }

// parseSum is the inverse of [sum.String]; the algorithm may be left out.
func parseSum(s string) (sum, error) {
	algorithm, digits, has := strings.Cut(s, ":")
	if !has {
		algorithm, digits = "", s
	}
	value, err := hex.DecodeString(digits)
	by := map[int]string{sha256.Size: "sha256", sha512.Size: "sha512"}[len(value)]
	if err != nil || by == "" || algorithm != "" && algorithm != by {
		return sum{}, imprint.Errorf(imprint.Invalid, "check", "sum", "%.140q is none", s).
			WithHint("write sha256: and 64, or sha512: and 128, hexadecimal digits")
	}
	return sum{by, value}, nil
}

// lookUp finds the sum of a file in a list as coreutils and BSD write it. A list that
// has different ones for the name is of no use.
func lookUp(list []byte, name string) (sum, error) {
	var found *sum
	for line := range strings.Lines(string(list)) {
		line = strings.TrimRight(line, "\r\n")
		digits, file, _ := strings.Cut(line, " ")
		file = strings.TrimPrefix(strings.TrimPrefix(file, " "), "*")
		if algorithm, rest, ok := strings.Cut(line, " ("); ok && (algorithm == "SHA256" || algorithm == "SHA512") {
			if i := strings.LastIndex(rest, ") = "); i >= 0 {
				file, digits = rest[:i], rest[i+4:]
			}
		}
		if path.Base(path.Clean(file)) != name {
			continue
		}
		s, err := parseSum(digits)
		if err != nil {
			continue // SHA-1 and the like, or a comment
		}
		if found != nil && found.algorithm == s.algorithm && !bytes.Equal(found.value, s.value) {
			return sum{}, imprint.Errorf(imprint.Invalid, "verify", name, "the list of sums has two different ones for it")
		}
		found = &s
	}
	if found == nil {
		return sum{}, imprint.Errorf(imprint.Invalid, "verify", name, "the list of sums has no SHA-256 or SHA-512 of a file of that name").
			WithHint("name the list that is for this image")
	}
	return *found, nil
}

// hashes computes SHA-256, and what else is wanted, of what is written to it.
type hashes struct {
	by  map[string]hash.Hash
	all io.Writer
}

func newHashes(want []sum) *hashes {
	h := &hashes{by: map[string]hash.Hash{"sha256": sha256.New()}}
	all := []io.Writer{h.by["sha256"]}
	for _, w := range want {
		if w.algorithm == "sha512" && h.by["sha512"] == nil {
			h.by["sha512"] = sha512.New()
			all = append(all, h.by["sha512"])
		}
	}
	h.all = io.MultiWriter(all...)
	return h
}

func (h *hashes) Write(b []byte) (int, error) { return h.all.Write(b) }

func (h *hashes) sum(algorithm string) []byte { return h.by[algorithm].Sum(nil) }

func (h *hashes) digest() imprint.Digest {
	return imprint.Digest(hex.EncodeToString(h.sum("sha256")))
}

// file hashes the n bytes of a file.
func (h *hashes) file(ctx context.Context, r io.ReaderAt, n int64, progress func(done, total int64)) error {
	b := make([]byte, chunk)
	for at := int64(0); at < n; {
		if err := ctx.Err(); err != nil {
			return err
		}
		k, err := r.ReadAt(b[:min(chunk, n-at)], at)
		h.Write(b[:k])
		if at += int64(k); at < n && err != nil {
			return err
		}
		if progress != nil {
			progress(at, n)
		}
	}
	return nil
}
