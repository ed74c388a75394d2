package guest

import (
	"io/fs"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"imprint"
)

// makePrivateDir creates dir and its parents; dir itself is for root only.
func makePrivateDir(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return imprint.Errorf(imprint.Internal, "create", dir, "%w", err)
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		return imprint.Errorf(imprint.Internal, "protect", dir, "%w", err)
	}
	return nil
}

// makeConfigDir creates dir, whose certificates anybody may read; what nobody
// else may is protected file by file.
func makeConfigDir(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return imprint.Errorf(imprint.Internal, "create", dir, "%w", err)
	}
	return nil
}

// takeLock holds path for this process until release is called. It fails with
// kind [imprint.Conflict] while another process has it.
func takeLock(path string) (release func(), err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, imprint.Errorf(imprint.Internal, "lock", path, "%w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, imprint.Errorf(imprint.Conflict, "lock", path, "another imprint-agent is at work").
			WithHint("wait for it, or stop the service first")
	}
	return func() {
		unix.Flock(int(f.Fd()), unix.LOCK_UN) // also for a child that is between fork and exec
		f.Close()
	}, nil
}

// trustedProgram returns why the file must not be run as root, or "".
func trustedProgram(info fs.FileInfo, owner uint32) string {
	stat, ok := info.Sys().(*syscall.Stat_t)
	switch {
	case !ok || stat.Uid != owner:
		return "it does not belong to root"
	case info.Mode().Perm()&0o002 != 0:
		return "anybody may write to it"
	}
	return ""
}
