package manifest_test

import (
	"io"
	"io/fs"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"imprint"
	"imprint/internal/manifest"
)

type readCloser = io.ReadCloser

func sortParams(s *imprint.Spec) {
	slices.SortFunc(s.Params, func(a, b imprint.Param) int { return strings.Compare(a.Name, b.Name) })
}

// FuzzParse: no input panics, and what is accepted passes Check and survives
// being written and read again.
func FuzzParse(f *testing.F) {
	for _, pattern := range []string{"testdata/good/*.yaml", "testdata/bad/*.yaml"} {
		all, _ := fs.Glob(os.DirFS("."), pattern)
		for _, file := range all {
			b, err := os.ReadFile(file)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(b)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		src := func() manifest.Sources {
			s := sources()
			s.Open = func(string) (io.ReadCloser, error) { return io.NopCloser(strings.NewReader("file\n")), nil }
			return s
		}
		all, err := manifest.Parse("fuzz", data, src())
		if err != nil {
			if imprint.KindOf(err) != imprint.Invalid {
				t.Fatalf("kind %v: %v", imprint.KindOf(err), err)
			}
			return
		}
		for _, m := range all {
			if err := manifest.Check(&m.Spec); err != nil {
				t.Fatalf("parsed, but %v", err)
			}
			out, err := manifest.Marshal(m.Spec)
			if err != nil {
				t.Fatal(err)
			}
			known := src()
			known.Prompt = func(name string) (imprint.Secret, error) { return m.Values[name], nil }
			again, err := manifest.Parse("again", out, known)
			if err != nil || len(again) != 1 {
				t.Fatalf("%v\n%s", err, out)
			}
			normalize(&m.Spec)
			normalize(&again[0].Spec)
			if !reflect.DeepEqual(m.Spec, again[0].Spec) {
				t.Fatalf("wrote\n%s\ngot  %+v\nwant %+v", out, again[0].Spec, m.Spec)
			}
		}
	})
}

// normalize makes absent and empty the same, as they are in YAML.
func normalize(s *imprint.Spec) {
	sortParams(s)
	if len(s.Metadata) == 0 {
		s.Metadata = nil
	}
	if s.Network != nil && len(s.Network.Ethernets) == 0 {
		s.Network.Ethernets = nil
	}
	if len(s.Params) == 0 {
		s.Params = nil
	}
}
