package guest

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"imprint"
	"imprint/internal/durable"
)

// maxFile is the size limit in bytes of a file of the agent's own that it reads back.
const maxFile = 256 << 10

// readFile returns the content of path: kind [imprint.NotFound] if there is
// none, and [imprint.Invalid] if it has more than limit bytes.
func readFile(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, imprint.Errorf(imprint.NotFound, "read", path, "no such file")
	}
	if err != nil {
		return nil, imprint.Errorf(imprint.Internal, "read", path, "%w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, imprint.Errorf(imprint.Internal, "read", path, "%w", err)
	}
	if int64(len(b)) > limit {
		return nil, imprint.Errorf(imprint.Invalid, "read", path, "more than %d bytes", limit)
	}
	return b, nil
}

// writeFile is [durable.WriteFile] with an error of kind [imprint.Internal].
func writeFile(path string, data []byte, mode fs.FileMode) error {
	if err := durable.WriteFile(path, data, mode); err != nil {
		return imprint.Errorf(imprint.Internal, "write", path, "%w", err)
	}
	return nil
}

func generationName(gen imprint.Generation) string { return fmt.Sprintf("generation-%d", gen) }
