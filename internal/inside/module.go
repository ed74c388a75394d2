package inside

import (
	"errors"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"imprint"
	"imprint/internal/job"
)

// modprobe loads a module and before it what it needs, as the initramfs's list says.
func modprobe(name string) error {
	name = strings.ReplaceAll(name, "-", "_")
	if _, err := os.Stat("/sys/module/" + name); err == nil {
		return nil
	}
	list, err := os.ReadFile(job.ModuleList)
	if err != nil {
		return imprint.Errorf(imprint.Internal, "read", job.ModuleList, "%w", err)
	}
	for line := range strings.Lines(string(list)) {
		if f := strings.Fields(line); len(f) > 0 && f[0] == name {
			return insmod(f[1:])
		}
	}
	return imprint.Errorf(imprint.NotFound, "load", "kernel module "+name, "the helper VM has none")
}

func insmod(names []string) error {
	for _, name := range names {
		name, optional := strings.CutPrefix(name, "?")
		if err := loadModule(name); err != nil && !optional {
			return imprint.Errorf(imprint.Unavailable, "load", "kernel module "+name, "%w", err)
		}
	}
	return nil
}

func loadModule(name string) error {
	f, err := os.Open(path.Join(job.ModuleDir, name+".ko"))
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	return nil
}
