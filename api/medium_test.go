package api

import (
	"archive/tar"
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"imprint"
)

// medium is one with everything that a medium can have.
func medium() *Medium {
	return &Medium{
		Number: 7, CheckIn: []string{"https://a:1", "https://b:2"}, Label: "config-2", Time: time.Date(2026, 11, 29, 15, 0, 0, 0, time.UTC), Token: true, Omitted: []string{"db-password", "user data"}, Unsupported: []string{"user alice", "the UID of bob"},
		Files: map[string]imprint.Secret{
			"openstack/latest/meta_data.json": imprint.NewSecret([]byte("{}")), "empty": imprint.NewSecret(nil),
			"org.imprint/" + strings.Repeat("ü", 90): imprint.NewSecret(bytes.Repeat([]byte{0}, 1<<10)),
		},
	}
}

// sameMedium says how two media differ; "" if they do not.
func sameMedium(a, b *Medium) string {
	plain := func(m *Medium) map[string]string {
		files := map[string]string{}
		for path, content := range m.Files {
			files[path] = string(content.Reveal())
		}
		return files
	}
	if a.Number != b.Number || !slices.Equal(a.CheckIn, b.CheckIn) || a.Label != b.Label || !a.Time.Equal(b.Time) || a.Token != b.Token || !slices.Equal(a.Omitted, b.Omitted) || !slices.Equal(a.Unsupported, b.Unsupported) || !maps.Equal(plain(a), plain(b)) {
		return fmt.Sprintf("%+v\nand %+v", a, b)
	}
	return ""
}

// archive has the header of a medium and more entries, with so much content.
func archive(t testing.TB, entries ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	header := tar.Header{Typeflag: tar.TypeXGlobalHeader, PAXRecords: map[string]string{recordNumber: "1", recordTime: "2026-11-29T15:00:00Z", recordFiles: fmt.Sprint(len(entries))}}
	for _, h := range slices.Concat([]tar.Header{header}, entries) {
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(make([]byte, h.Size)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// sparse is an archive in GNU's format whose one file has a hole of size bytes, and
// none of them in the archive.
func sparse(t testing.TB, size int64) []byte {
	t.Helper()
	b := archive(t, tar.Header{Typeflag: tar.TypeReg, Name: "hole", Format: tar.FormatGNU})
	h := b[bytes.Index(b, []byte("hole")):][:512]
	h[156] = tar.TypeGNUSparse
	octal := func(at, n int, v int64) { copy(h[at:at+n], fmt.Sprintf("%0*o\x00", n-1, v)) }
	octal(386, 12, size) // one piece of no bytes at the end
	octal(398, 12, 0)
	octal(483, 12, size)
	octal(124, 12, 0)
	sum := int64(0)
	copy(h[148:156], "        ")
	for _, c := range h {
		sum += int64(c)
	}
	copy(h[148:156], fmt.Sprintf("%06o\x00 ", sum))
	return b
}

func TestDecodeMedium(t *testing.T) {
	t.Parallel()
	want := medium()
	b, err := want.Encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := DecodeMedium(b.Reveal())
	if err != nil {
		t.Fatal(err)
	}
	if diff := sameMedium(got, want); diff != "" {
		t.Error(diff)
	}

	many := make([]tar.Header, maxMediumFiles+1)
	for i := range many {
		many[i] = tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprint(i)}
	}
	file := tar.Header{Typeflag: tar.TypeReg, Name: "a", Size: 600}
	for says, b := range map[string][]byte{
		"no global header":             archive(t)[1024:],
		`it has 1 of "2" files`:        archive(t, file, tar.Header{Typeflag: tar.TypeReg, Name: "b"})[:2560],
		"unexpected EOF":               archive(t, file)[:2048],
		`"d/" is not a file`:           archive(t, tar.Header{Typeflag: tar.TypeDir, Name: "d/"}),
		`"l" is not a file`:            archive(t, tar.Header{Typeflag: tar.TypeSymlink, Name: "l", Linkname: "/etc/passwd"}),
		`it has "a" twice`:             archive(t, file, file),
		"more than 4096 files":         archive(t, many...),
		`"hole" is not a file`:         sparse(t, 1<<40),
		"month out of range":           bytes.Replace(archive(t), []byte("2026-11-29T15"), []byte("2026-99-29T15"), 1),
		`"hole" has more bytes than t`: paxSparse(t),
	} {
		if m, err := DecodeMedium(b); imprint.KindOf(err) != imprint.Invalid || err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v, %v", says, m, err)
		}
	}
}

// paxSparse is an archive in the PAX format whose one file is a hole of a terabyte.
func paxSparse(t testing.TB) []byte {
	t.Helper()
	const records = "22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n24 GNU.sparse.name=hole\n37 GNU.sparse.realsize=1099511627776\n"
	extended := archive(t, tar.Header{Typeflag: tar.TypeReg, Name: "PaxHeaders", Size: int64(len(records))})
	body := archive(t, tar.Header{Typeflag: tar.TypeReg, Name: "x", Size: 512})
	at := bytes.Index(extended, []byte("PaxHeaders"))
	h := extended[at : at+512]
	h[156] = tar.TypeXHeader
	copy(extended[at+512:], records)
	copy(h[148:156], "        ")
	sum := 0
	for _, c := range h {
		sum += int(c)
	}
	copy(h[148:156], fmt.Sprintf("%06o\x00 ", sum))
	file := body[bytes.Index(body, []byte("x\x00\x00")):]
	copy(file[512:], "1\n1099511627776\n0\n") // one piece of no bytes at the end
	return append(extended[:at+1024:at+1024], file...)
}

// FuzzDecodeMedium: whatever is accepted has no more in it than the archive, and comes
// out of another archive as it is.
func FuzzDecodeMedium(f *testing.F) {
	b, err := medium().Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b.Reveal())
	f.Add(archive(f, tar.Header{Typeflag: tar.TypeReg, Name: "a", Size: 3}))
	f.Add(sparse(f, 1<<20))
	f.Add(paxSparse(f))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := DecodeMedium(b)
		if err != nil {
			if imprint.KindOf(err) != imprint.Invalid {
				t.Errorf("%v", err)
			}
			return
		}
		size := 0
		for _, content := range m.Files {
			size += len(content.Reveal())
		}
		if size > len(b) || len(m.Files) > maxMediumFiles {
			t.Errorf("%d files of %d bytes from %d", len(m.Files), size, len(b))
		}
		encoded, err := m.Encode()
		if err != nil {
			return // a name or a year that no archive of ours has
		}
		again, err := DecodeMedium(encoded.Reveal())
		if err != nil {
			t.Fatal(err)
		}
		if diff := sameMedium(again, m); diff != "" {
			t.Error(diff)
		}
	})
}
