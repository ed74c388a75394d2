// Command poweroff is a PID 1 that does nothing but end its machine, as if all were done.
package main

import "golang.org/x/sys/unix"

func main() {
	unix.Sync()
	unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
}
