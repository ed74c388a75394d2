package guest

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"imprint"
	"imprint/internal/media"
)

// maker is whom the boot sectors name that imprint writes, three bytes from their beginning.
const maker = "IMPRINT "

// claim opens the volume that m is about, so that nobody else can use it, if imprint made
// it, and it holds the payload that this machine enrolled with, or what an interrupted
// run left of it. It fails with kind [imprint.NotFound] if there is no such volume, with
// [imprint.Conflict] if it is in use, and with [imprint.Denied] if it is not to be
// overwritten, or cannot be.
func (s volumeSource) claim(m *medium) (*ownVolume, error) {
	for _, d := range s.labelled() {
		v, err := s.claimDevice(d, m)
		if imprint.KindOf(err) != imprint.NotFound || err == nil {
			return v, err
		}
	}
	return nil, imprint.Errorf(imprint.NotFound, "find", "the volume that the payload was on", "it is not there any more")
}

func (s volumeSource) claimDevice(d blockDevice, m *medium) (*ownVolume, error) {
	f, err := os.OpenFile(d.path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, imprint.Errorf(imprint.NotFound, "open", d.name, "%w", err)
	}
	_, err = m.on(f, d.name)
	f.Close()
	if err != nil {
		return nil, err
	}
	// A block device is opened exclusively once, and not while it is mounted.
	f, err = os.OpenFile(d.path, os.O_RDWR|os.O_EXCL|unix.O_NONBLOCK, 0)
	switch {
	case errors.Is(err, unix.EBUSY):
		return nil, imprint.Errorf(imprint.Conflict, "take away", d.name, "it is in use%s", s.mounted(d.number))
	case errors.Is(err, unix.EROFS), errors.Is(err, fs.ErrPermission), err == nil && readOnly(f):
		if err == nil {
			f.Close()
		}
		return nil, imprint.Errorf(imprint.Denied, "take away", d.name, "it is for reading only")
	case err != nil:
		return nil, imprint.Errorf(imprint.Unavailable, "take away", d.name, "%w", err)
	}
	v := &ownVolume{File: f, name: d.name, zero: s.zero}
	v.boot, err = m.on(f, d.name) // nobody else changes it from now on
	if err == nil {
		v.size, err = f.Seek(0, io.SeekEnd)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return v, nil
}

// on returns the digest of f's first sector if f is the volume that m is about, and is
// to be overwritten. It fails with kind [imprint.NotFound] if it is another, and with
// [imprint.Denied] if it holds more than the payload, or imprint did not make it.
func (m *medium) on(f *os.File, name string) (imprint.Digest, error) {
	other := imprint.Errorf(imprint.NotFound, "take away", name, "it is another volume")
	leave := func(why string) (imprint.Digest, error) {
		return "", imprint.Errorf(imprint.Denied, "take away", name, "%s", why)
	}
	first := make([]byte, bootSector)
	if _, err := f.ReadAt(first, 0); err != nil {
		return "", other
	}
	boot := imprint.DigestOf(first)
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return "", other
	}
	c, err := media.Inspect(f, size)
	if m.Boot != "" { // half of it may be gone
		switch {
		case boot != m.Boot:
			return "", other
		case err == nil && len(without(c.Files, PayloadName)) > 0:
			return leave("something else was written to it since")
		case err != nil && imprint.KindOf(err) != imprint.Invalid:
			return "", other
		}
		return boot, nil
	}
	if err != nil {
		return "", other
	}
	rest := without(c.Files, PayloadName)
	switch {
	case len(rest) == len(c.Files) || !m.isOf(c.Files):
		return "", other
	case !strings.HasPrefix(c.Format, "fat"):
		return leave("it is a CD image, which the machine does not write to")
	case string(first[3:11]) != maker:
		return leave("imprint did not make its file system")
	case len(rest) > 0:
		return leave("it holds more than the payload")
	}
	return boot, nil
}

// isOf reports whether one of files is the payload that m is about.
func (m *medium) isOf(files map[string][]byte) bool {
	for path, b := range files {
		if strings.EqualFold(path, PayloadName) && filesOf(b) == m.Digest {
			return true
		}
	}
	return false
}

// without returns the files but the one of that name, in any case.
func without(files map[string][]byte, name string) []string {
	var rest []string
	for path := range files {
		if !strings.EqualFold(path, name) {
			rest = append(rest, path)
		}
	}
	return rest
}

// readOnly reports whether f is a block device that may be opened for writing, but not
// be written to.
func readOnly(f *os.File) bool {
	fixed, err := unix.IoctlGetInt(int(f.Fd()), unix.BLKROGET)
	return err == nil && fixed != 0
}

// mounted says where a device is mounted, as the end of a sentence.
func (s volumeSource) mounted(number string) string {
	b, err := readFile(s.layout.at("proc", "self", "mountinfo"), maxMountinfo)
	if err != nil {
		return ""
	}
	for _, m := range parseMountinfo(b) {
		if m.device == number {
			return ": it is mounted at " + m.point
		}
	}
	return ""
}
