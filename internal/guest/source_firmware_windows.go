package guest

// firmwareSources returns none: every user of Windows may read what the firmware
// says, and no token may be where they all can read it.
func firmwareSources(Layout) []source { return nil }
