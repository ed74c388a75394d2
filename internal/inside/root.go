package inside

import (
	"context"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"imprint/internal/repair"
)

// mountRoot mounts the system on a disk as its fstab says. Nothing in it is a device
// or has somebody else's rights here.
func (m *machine) mountRoot(ctx context.Context, e *Env, index int) (string, error) {
	if s := m.roots[index]; s != nil {
		return s.Dir, nil
	}
	device, err := findDisk(index)
	if err != nil {
		return "", err
	}
	dir := "/mnt/" + strconv.Itoa(index)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	s, err := repair.Mount(ctx, e, device, dir, m.partitions[index])
	if err != nil {
		return "", err
	}
	m.roots[index] = s
	return dir, nil
}

func (m *machine) unmount(index int) error {
	s := m.roots[index]
	if s == nil {
		return nil
	}
	if err := s.Unmount(); err != nil {
		return err
	}
	delete(m.roots, index)
	return nil
}

// unmountAll unmounts everything and returns the first failure.
func (m *machine) unmountAll() (err error) {
	for index := range m.roots {
		if left := m.unmount(index); err == nil {
			err = left
		}
	}
	unix.Sync()
	return err
}
