package manifest_test

import (
	"bytes"
	"fmt"
	"testing"

	"imprint/internal/manifest"
)

func BenchmarkParse(b *testing.B) {
	var file bytes.Buffer
	const instances = 100
	for n := range instances {
		fmt.Fprintf(&file, "---\nname: web-%d\ndnsNames: [web-%d.lab.internal]\nips: [10.0.0.%d]\nparams: {private: {db: x}}\n", n, n, n+1)
	}
	b.ReportAllocs()
	b.SetBytes(int64(file.Len()))
	for b.Loop() {
		if all, err := manifest.Parse("bench", file.Bytes(), manifest.Sources{}); err != nil || len(all) != instances {
			b.Fatal(len(all), err)
		}
	}
}
