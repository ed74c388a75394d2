package daemon

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"imprint"
)

// earliest is the start of 2026 in seconds since 1970, before this program was
// written: a clock that says less is wrong.
const earliest = 1767225600

// checkClock refuses a clock with which everything that is made would be wrong,
// as that of a machine without a battery.
func checkClock(now time.Time) error {
	if now.Unix() < earliest {
		return imprint.Errorf(imprint.Unavailable, "start", "server", "the clock says %s, which is in the past", now.UTC().Format(time.DateTime)).
			WithHint("set this machine's clock, or wait until it was set over the network")
	}
	return nil
}

// keepOutOfCoreFiles makes sure that a crash does not write values to a disk.
func keepOutOfCoreFiles() error {
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return imprint.Errorf(imprint.Internal, "switch off", "core files", "%w", err)
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return imprint.Errorf(imprint.Internal, "switch off", "core files", "%w", err)
	}
	return nil
}

func makeDirs(s *Settings) error {
	for dir, mode := range map[string]os.FileMode{s.Data: 0o700, s.Run: 0o700} {
		if err := os.MkdirAll(dir, mode); err != nil {
			return imprint.Errorf(imprint.Denied, "make", dir, "%w", err).
				WithHint("run as root, or choose directories of your own with --data and --run")
		}
	}
	if err := ownDir(s.Data); err != nil {
		return err
	}
	if s.Group != "" { // its members pass through to the control socket, and see nothing else
		if err := os.Chmod(s.Run, 0o711); err != nil {
			return imprint.Errorf(imprint.Denied, "open", s.Run, "%w", err)
		}
	}
	return nil
}

// ownDir refuses a data directory that others can change: whoever can exchange
// the key file or the store decides what this server does.
func ownDir(dir string) error {
	info, err := os.Stat(dir)
	if err != nil {
		return imprint.Errorf(imprint.Denied, "use", dir, "%w", err)
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok || int(stat.Uid) != os.Geteuid() || info.Mode().Perm()&0o022 != 0 {
		return imprint.Errorf(imprint.Denied, "use", dir, "others than this user can change it (mode %04o)", info.Mode().Perm()).
			WithHint("choose a directory of its own, or give this one to the user that runs imprint, with mode 0700")
	}
	return nil
}

// checkLogName refuses to go on with the log of a server of another name: a host
// that was renamed would seem to have a log that somebody forged.
func checkLogName(dir, name string) error {
	b, err := os.ReadFile(filepath.Join(dir, checkpointFile))
	if err != nil {
		return nil // a new log, or one that cannot be read: whoever opens it says so
	}
	origin, _, _ := strings.Cut(string(b), "\n")
	if was, ours := strings.CutPrefix(origin, "imprint/"); ours && was != name {
		return imprint.Errorf(imprint.Conflict, "open", "issuance log "+dir, "it is the log of a server called %s, and this one is called %s", was, name).
			WithHint("keep the old name: write name: %s into the configuration, or use --name", was)
	}
	return nil
}
