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
	if len(os.Args) == 4 && os.Args[1] == childWrite {
		halfWay(os.Args[2], os.Args[3])
	}
	if len(os.Args) == 5 && os.Args[1] == childFetch {
		fetchUntilKilled(os.Args[2], os.Args[3], os.Args[4])
	}
	goleak.VerifyTestMain(m)
}
