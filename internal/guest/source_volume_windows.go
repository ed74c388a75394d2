package guest

import (
	"context"
	"strings"

	"golang.org/x/sys/windows"
)

// volumeSource is a drive whose volume is labelled IMPRINT.
type volumeSource struct{}

func newVolumeSource(Layout) volumeSource { return volumeSource{} }

func (s volumeSource) String() string { return "volume " + VolumeLabel }

func (s volumeSource) Try(context.Context) (*finding, error) {
	drives, err := windows.GetLogicalDrives()
	if err != nil {
		return nil, volumeEmpty()
	}
	for i := range 26 {
		if drives&(1<<i) == 0 {
			continue
		}
		root := string(rune('A'+i)) + `:\`
		if isVolumeLabel(driveLabel(root)) {
			return readVolume(s.String(), root)
		}
	}
	return nil, volumeEmpty()
}

// driveLabel returns the volume label of a drive, or "" for an empty drive.
func driveLabel(root string) string {
	name, err := windows.UTF16PtrFromString(root)
	if err != nil {
		return ""
	}
	var label [windows.MAX_PATH + 1]uint16
	if err := windows.GetVolumeInformation(name, &label[0], uint32(len(label)), nil, nil, nil, nil, 0); err != nil {
		return ""
	}
	return strings.TrimSpace(windows.UTF16ToString(label[:]))
}
