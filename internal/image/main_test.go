package image_test

import (
	"os"
	"testing"

	"go.uber.org/goleak"

	"imprint/internal/image/reader"
)

// A test's process is a sandbox as imprint's is.
func TestMain(m *testing.M) {
	if reader.IsMain(os.Args[1:]) {
		os.Exit(reader.Main(os.Args[1:]))
	}
	goleak.VerifyTestMain(m)
}
