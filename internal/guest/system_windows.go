package guest

const (
	consoleDevice    = "CONOUT$"
	noControllingTTY = 0
)

// notifyReady does nothing: the service manager is told by [RunService].
func notifyReady() {}
