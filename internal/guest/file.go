package guest

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"imprint"
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

// writeFile puts data at path so that a crash leaves the old content or the
// new, whole and with mode, and never a mixture. The directory must exist.
func writeFile(path string, data []byte, mode fs.FileMode) (err error) {
	defer func() {
		if err != nil {
			err = imprint.Errorf(imprint.Internal, "write", path, "%w", err)
		}
	}()
	dir, base := filepath.Split(path)
	// One name per target: the next run clears what a crash left behind.
	temp := filepath.Join(dir, "."+base+".new")
	if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Chmod(mode) // whatever the umask is
	}
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		os.Remove(temp)
		return err
	}
	if err := os.Rename(temp, path); err != nil {
		return err
	}
	return syncDir(dir)
}

func generationName(gen imprint.Generation) string { return fmt.Sprintf("generation-%d", gen) }
