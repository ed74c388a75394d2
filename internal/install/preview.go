package install

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"imprint"
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
		if _, err := os.Stat(filepath.Dir(p.Disk)); err != nil {
			return Preview{}, openError(p.Disk, err)
		}
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

// Found is what is known of a disk.
type Found struct {
	// Unfinished says why no machine should be started from it: an installation on it
	// failed, or was begun and did not end. "" is that there is no reason.
	Unfinished string
	// Instance and Generation are those that were installed on it; "" is none that is known.
	Instance   imprint.InstanceID
	Ref        string
	Generation imprint.Generation
}

// Find says what is known of the disk at path, without claiming it. It fails with
// [fs.ErrNotExist] if there is none, and with kinds Denied and Unavailable.
func (j Journal) Find(path string) (Found, error) {
	why, err := mark(path)
	if err != nil {
		return Found{}, err
	}
	f, err := os.Open(path)
	if err != nil {
		return Found{}, openError(path, err)
	}
	defer f.Close()
	id, _, err := identify(f)
	if err != nil {
		return Found{}, err
	}
	e, err := j.read(id)
	if err != nil || e == nil {
		return Found{Unfinished: why}, err
	}
	found := Found{Unfinished: why, Instance: e.Instance, Ref: e.Ref, Generation: e.Generation}
	if why == "" && e.State != finished && e.State != installed {
		found.Unfinished = fmt.Sprintf("the installation of %s on it is half done (%s)", e.Ref, e.State)
	}
	return found, nil
}
