package guest

import (
	"errors"
	"io/fs"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"imprint"
)

// maxRoutes is the size limit of the kernel's routing table in bytes.
const maxRoutes = 1 << 20

// linkLocalInterface returns the interface by which the metadata address is on
// the link, which is what the host's DHCP makes of it. Without such a route a
// request could end at anybody on any network: then it fails with kind
// [imprint.NotFound].
func linkLocalInterface(l Layout) (name string, err error) {
	table := l.at("proc", "net", "route")
	b, err := readFile(table, maxRoutes)
	if errors.Is(err, fs.ErrNotExist) || imprint.KindOf(err) == imprint.NotFound {
		return "", imprint.Errorf(imprint.NotFound, "read", table, "there is no routing table")
	}
	if err != nil {
		return "", err
	}
	// Interface, destination, gateway, flags, … and mask, addresses as the bytes
	// are in memory: Documentation/filesystems/proc.rst.
	const metadata, onLink, host = "FEA9FEA9", "00000000", "FFFFFFFF"
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) >= 8 && f[1] == metadata && f[2] == onLink && f[7] == host {
			return f[0], nil
		}
	}
	return "", imprint.Errorf(imprint.NotFound, "look for", metadataAddress, "no interface leads there alone")
}

func bindToInterface(c syscall.RawConn, name string) error {
	var err error
	if cerr := c.Control(func(fd uintptr) { err = unix.BindToDevice(int(fd), name) }); cerr != nil {
		return cerr
	}
	return err
}

func portInUse(err error) bool {
	return errors.Is(err, unix.EADDRINUSE) || errors.Is(err, unix.EADDRNOTAVAIL)
}
