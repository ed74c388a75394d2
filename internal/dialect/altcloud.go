package dialect

import "imprint"

// altCloudDrive renders what cloud-init's AltCloud reads from a floppy, or from a CD with
// the label CDROM: user data and nothing else.
func altCloudDrive(v values, inst *imprint.Instance, _ Facts, in DriveInput) error {
	if inst.Spec.UserData == "" {
		return imprint.Errorf(imprint.Invalid, "render altcloud for", inst.Ref(), "it has no user data, and there is nothing else on such a medium").
			WithHint("give it user data, or choose another dialect: imprint media list")
	}
	if in.Closed {
		return imprint.Errorf(imprint.Conflict, "render altcloud for", inst.Ref(), "its boot is closed, so its user data is for the holder of its key only").
			WithHint("start its next life: imprint rebirth")
	}
	v.putValue("user-data.txt", userData(&inst.Spec))
	return nil
}
