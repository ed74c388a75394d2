package guest

import (
	"syscall"

	"imprint"
)

// linkLocalInterface says that there is none: Windows has no source ports that
// only its administrator may use, so the host cannot know whom it serves.
func linkLocalInterface(Layout) (name string, err error) {
	return "", imprint.Errorf(imprint.NotFound, "look for", metadataAddress, "not on Windows")
}

func bindToInterface(syscall.RawConn, string) error { return nil }

func portInUse(error) bool { return false }
