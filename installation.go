package imprint

import "time"

// InstallStep is how far the installation of an instance's disk is.
type InstallStep string

// The steps, in their order. An installation that was interrupted starts again and
// leaves out what was done, and what an instance does not need is left out as well.
const (
	InstallStarted      InstallStep = "started"
	InstallFetched      InstallStep = "fetched"      // the image is at hand, and is what it is to be
	InstallWritten      InstallStep = "written"      // it is on the disk
	InstallRepaired     InstallStep = "repaired"     // grown, bootable here, told apart from other copies
	InstallPersonalized InstallStep = "personalized" // files were put into it
	InstallScripts      InstallStep = "scripts"      // those of the OS definition ran
	InstallFinished     InstallStep = "finished"
	InstallFailed       InstallStep = "failed"
)

// Installation is the latest that was reported of an installation of an instance.
type Installation struct {
	// ID is that of the plan: what is installed, and on which disk. The same plan
	// that is taken up again has the same.
	ID         Digest      `json:"id"`
	Generation Generation  `json:"generation"`
	Step       InstallStep `json:"step"`
	// Host and Disk say where: the machine that installs, and what the disk is
	// called there.
	Host string `json:"host,omitempty"`
	Disk string `json:"disk,omitempty"`
	// Image is where the image came from, without credentials, and Digest that of
	// its content.
	Image  string `json:"image,omitempty"`
	Digest Digest `json:"digest,omitempty"`
	// Detail is what there is to say of the step; of a failure, why.
	Detail string    `json:"detail,omitempty"`
	At     time.Time `json:"at"`
	By     string    `json:"by,omitempty"`
}
