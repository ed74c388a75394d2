package guest

import (
	"context"

	"golang.org/x/sys/windows"

	"imprint"
)

// virtioSource is the named virtio-serial port of the vioser driver.
type virtioSource struct{}

func newVirtioSource(Layout) virtioSource { return virtioSource{} }

func (s virtioSource) String() string { return "virtio port " + PortName }

func (s virtioSource) Try(ctx context.Context) (*finding, error) {
	conn, err := openDevice(`\\.\Global\`+PortName, s.String())
	if err != nil {
		return nil, err
	}
	return greet(ctx, s.String(), conn)
}

// unavailable says whether a device is missing or in use.
func unavailable(path string, err error) error {
	switch err {
	case windows.ERROR_FILE_NOT_FOUND, windows.ERROR_PATH_NOT_FOUND:
		return imprint.Errorf(imprint.NotFound, "open", path, "the machine has no such port")
	case windows.ERROR_ACCESS_DENIED, windows.ERROR_SHARING_VIOLATION:
		return imprint.Errorf(imprint.Unavailable, "open", path, "another program has it open, or this one is not run as administrator")
	}
	return imprint.Errorf(imprint.Unavailable, "open", path, "%w", err)
}
