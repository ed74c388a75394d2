package helpervm

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"strconv"
	"syscall"

	"imprint"
	"imprint/internal/disk"
)

// openDisk is one of [Config.Disks] while the VM runs.
type openDisk struct {
	name  string // as messages show it
	file  *os.File
	claim io.Closer // nil if the caller keeps it
	block bool
	ro    bool
}

// openDisks opens and claims the disks in order. What was opened is returned also
// beside an error, for closing.
func openDisks(list []Disk) (open []*openDisk, err error) {
	for _, d := range list {
		o, err := d.open()
		if err != nil {
			return open, err
		}
		open = append(open, o)
	}
	return open, nil
}

func (d *Disk) open() (*openDisk, error) {
	o := &openDisk{name: d.Path, file: d.File, ro: d.ReadOnly}
	switch {
	case (d.Path == "") == (d.File == nil):
		return nil, imprint.Errorf(imprint.Invalid, "open", "disk", "it has to be a path or an open file")
	case d.File != nil && d.ReadOnly:
		// A descriptor for writing too is not what QEMU takes for a disk that is only read.
		f, err := os.Open("/proc/self/fd/" + strconv.Itoa(int(d.File.Fd())))
		if err != nil {
			return nil, openError(d.File.Name(), err)
		}
		o.name, o.file, o.claim = d.File.Name(), f, f
	case d.File != nil:
		o.name = d.File.Name()
	case d.ReadOnly:
		f, err := os.Open(d.Path)
		if err != nil {
			return nil, openError(d.Path, err)
		}
		o.file, o.claim = f, f
	default:
		f, err := disk.Open(d.Path)
		if err != nil {
			return nil, err
		}
		o.file, o.claim = f.File, f
	}
	info, err := o.file.Stat()
	if err == nil && !info.Mode().IsRegular() && info.Mode().Type() != fs.ModeDevice {
		err = imprint.Errorf(imprint.Invalid, "open", o.name, "it is neither a regular file nor a block device")
	}
	if err == nil {
		o.block = !info.Mode().IsRegular()
		err = o.whole(info.Size())
	}
	if err != nil {
		o.close()
		return nil, err
	}
	return o, nil
}

// sector is what the sizes of virtual disks are multiples of.
const sector = 512

// whole fails if a disk to be written does not consist of whole sectors. QEMU itself
// rounds up what is for reading, with zeros.
func (o *openDisk) whole(size int64) error {
	if !o.block && !o.ro && size%sector != 0 {
		return imprint.Errorf(imprint.Invalid, "open", o.name, "its size, %d bytes, is no multiple of %d", size, sector).
			WithHint("enlarge it: truncate -s %%%d %s", sector, o.name)
	}
	return nil
}

// sync makes durable what the VM wrote.
func (o *openDisk) sync() error {
	if o.ro {
		return nil
	}
	if err := o.file.Sync(); err != nil && !errors.Is(err, syscall.EINVAL) {
		return imprint.Errorf(imprint.Unavailable, "write", o.name, "%w", err)
	}
	return nil
}

func (o *openDisk) close() {
	if o.claim != nil {
		o.claim.Close()
	}
}

func openError(path string, err error) error {
	kind := imprint.Unavailable
	switch {
	case errors.Is(err, fs.ErrNotExist):
		kind = imprint.NotFound
	case errors.Is(err, fs.ErrPermission):
		kind = imprint.Denied
	}
	var at *fs.PathError
	if errors.As(err, &at) {
		err = at.Err
	}
	return imprint.Errorf(kind, "open", path, "%w", err)
}
