package install

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// Preview is what a run would find.
type Preview struct {
	Exists   bool   `json:"exists"`         // the disk is there
	Size     int64  `json:"size"`           // its size in bytes; 0 is that it is not there, or empty
	Finished bool   `json:"finished"`       // nothing would be done
	Written  bool   `json:"written"`        // the image is on it already
	Note     string `json:"note,omitempty"` // what is on it of an earlier installation
}

// Preview looks at the disk and its journal, and touches nothing. It fails as
// [Installer.Run] does before that begins.
func (in *Installer) Preview(p *Plan, again bool) (Preview, error) {
	if _, err := os.Lstat(p.Disk); errors.Is(err, fs.ErrNotExist) {
		return Preview{}, nil
	}
	t, err := openTarget(p.Disk, false)
	if err != nil {
		return Preview{}, err
	}
	defer t.Close()
	v := Preview{Exists: true, Size: t.Size()}
	old, err := in.Journal.read(t.id)
	if err != nil {
		return v, err
	}
	f, err := look(old, p, p.id(t.id), again)
	if err != nil {
		return v, err
	}
	v.Note = f.note
	if f.entry != nil {
		v.Finished, v.Written = f.entry.State == finished, f.entry.State == written || f.entry.State == installed
	}
	return v, nil
}

// Unfinished says why a machine should not be started from the disk at path: an
// installation on it failed, or was begun and did not end. It is "" otherwise, and for
// a disk of which nothing is known.
func (j Journal) Unfinished(path string) (string, error) {
	why, err := Mark(path)
	if err != nil || why != "" {
		return why, err
	}
	f, err := os.Open(path)
	if err != nil {
		return "", nil // who starts the machine will say so
	}
	defer f.Close()
	id, _, err := identify(f)
	if err != nil {
		return "", err
	}
	e, err := j.read(id)
	if err != nil || e == nil || e.State == finished || e.State == installed {
		return "", err
	}
	return fmt.Sprintf("the installation of %s on it is %s", e.Ref, e.State), nil
}
