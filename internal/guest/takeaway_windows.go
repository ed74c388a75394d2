package guest

import (
	"context"

	"imprint"
)

// claim fails with kind [imprint.NotFound] if the volume that m is about is not there,
// and with [imprint.Denied] if it is: a volume that Windows has mounted is locked only by
// whoever finds no file of it open, and leaves a drive behind that Windows asks its users
// to format.
func (s volumeSource) claim(m *medium) (*ownVolume, error) {
	f, err := s.Try(context.Background())
	if err != nil || f.files != m.Digest {
		return nil, imprint.Errorf(imprint.NotFound, "find", "the volume that the payload was on", "it is not there any more")
	}
	return nil, imprint.Errorf(imprint.Denied, "take away", s.String(), "on Windows the agent overwrites no volume")
}
