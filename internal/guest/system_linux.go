package guest

import (
	"net"
	"os"

	"golang.org/x/sys/unix"
)

const (
	consoleDevice    = "/dev/console"
	noControllingTTY = unix.O_NOCTTY // the agent must not become the console's session leader
)

// notifyReady tells systemd, if it started the agent, that the machine has its
// certificate (sd_notify(3)). A name that starts with @ is an abstract socket.
func notifyReady() {
	name := os.Getenv("NOTIFY_SOCKET")
	if name == "" {
		return
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		return // systemd notices by itself that nothing came
	}
	defer conn.Close()
	conn.Write([]byte("READY=1"))
}
