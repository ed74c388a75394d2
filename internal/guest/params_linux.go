package guest

import (
	"golang.org/x/sys/unix"

	"imprint"
)

// keepsValues says whether values are kept for programs to read.
const keepsValues = true

// makeParamsDir makes the directory of values and sees to it that it is in
// memory: below /run on most systems, on a file system of its own elsewhere. A
// swap device can still get its pages, as it can those of every program.
func (l Layout) makeParamsDir() error {
	if err := makePrivateDir(l.Params()); err != nil {
		return err
	}
	inMemory, err := inMemory(l.Params())
	if err != nil || inMemory {
		return err
	}
	flags := uintptr(unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC)
	if err := unix.Mount("imprint", l.Params(), "tmpfs", flags, "mode=0700,size=16m"); err != nil {
		return imprint.Errorf(imprint.Internal, "mount", l.Params(), "a file system in memory: %w", err).
			WithHint("parameters are never put on a disk; make /run a tmpfs or run the agent as root")
	}
	return nil
}

func inMemory(dir string) (bool, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return false, imprint.Errorf(imprint.Internal, "look at", dir, "%w", err)
	}
	return int64(st.Type) == unix.TMPFS_MAGIC || int64(st.Type) == unix.RAMFS_MAGIC, nil
}
