package guest

import (
	"os"
	"path/filepath"
)

// Config is the directory of the machine's lasting identity.
func (l Layout) Config() string { return filepath.Join(l.programData(), "imprint") }

// Run is the directory for what a reboot may forget.
func (l Layout) Run() string { return filepath.Join(l.programData(), "imprint", "run") }

func (l Layout) programData() string {
	if l.Root != "" {
		return l.Root
	}
	if dir := os.Getenv("ProgramData"); dir != "" {
		return dir
	}
	return `C:\ProgramData`
}
