package guest

import (
	"time"

	"golang.org/x/sys/unix"
)

func setSystemTime(t time.Time) error {
	tv := unix.NsecToTimeval(t.UnixNano())
	return unix.Settimeofday(&tv)
}
