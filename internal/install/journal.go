package install

import (
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"imprint"
	"imprint/internal/durable"
)

// Journal remembers, for each disk, how far its installation is. It is a directory
// with one file for each disk, which a crash leaves as it was or as it is to be.
type Journal struct{ Dir string }

// maxEntry is the size limit of an entry's file in bytes.
const maxEntry = 64 << 10

// state is how far an installation is.
type state string

const (
	writing   state = "writing"   // the disk holds part of the image, or nothing of it
	written   state = "written"   // the disk holds the image
	changing  state = "changing"  // what the disk holds is not known
	installed state = "installed" // the disk is complete, and the server may not know
	finished  state = "finished"
	failed    state = "failed" // the disk is marked
)

// entry is what the journal has of one disk.
type entry struct {
	Plan       imprint.Digest     `json:"plan"`
	Instance   imprint.InstanceID `json:"instance"`
	Ref        string             `json:"ref"`
	Generation imprint.Generation `json:"generation"`
	Disk       string             `json:"disk"` // what it was called
	State      state              `json:"state"`
	Image      string             `json:"image"`
	Digest     imprint.Digest     `json:"digest,omitempty"`
	Reason     string             `json:"reason,omitempty"` // of a failure
	// Changed is when the file of a disk was last changed, once it is written: an image
	// that somebody changed since is written again. Zero for block devices.
	Changed time.Time `json:"changed,omitzero"`
	At      time.Time `json:"at"`
}

func (j Journal) path(disk string) string {
	return filepath.Join(j.Dir, string(imprint.DigestOf([]byte(disk)))+".json")
}

// read returns the entry of the disk of that identity, or nil.
func (j Journal) read(disk string) (*entry, error) {
	path := j.path(disk)
	b, err := readEntry(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, imprint.Errorf(imprint.Unavailable, "read", "journal "+path, "%w", errors.Unwrap(err)).
			WithHint("choose another directory with --journal")
	}
	var e entry
	if err := json.Unmarshal(b, &e); err != nil {
		return nil, imprint.Errorf(imprint.Unavailable, "read", "journal "+path, "%w", err).
			WithHint("nothing is known of what is on the disk; remove that file, and the installation starts over")
	}
	return &e, nil
}

// readEntry returns an entry's file, or as much of it as one can have.
func readEntry(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxEntry))
}

// write makes e the entry of the disk.
func (j Journal) write(disk string, e *entry) error {
	err := os.MkdirAll(j.Dir, 0o700)
	var b []byte
	if err == nil {
		b, err = json.MarshalIndent(e, "", "  ")
	}
	if err == nil {
		err = durable.WriteFile(j.path(disk), append(b, '\n'), 0o600)
	}
	if err != nil {
		kind := imprint.Unavailable
		if errors.Is(err, fs.ErrPermission) {
			kind = imprint.Denied
		}
		return imprint.Errorf(kind, "write", "journal "+j.Dir, "%w", err).WithHint("choose a directory that may be written with --journal")
	}
	return nil
}
