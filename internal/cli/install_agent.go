package cli

import (
	"archive/tar"
	"errors"
	"os"
	"time"

	"imprint"
	"imprint/packaging/agent"
)

// agentPath is where the agent is in a guest; one that has it keeps it.
const agentPath = "/usr/sbin/imprint-agent"

// agentPackage returns a package with the agent at path, its systemd units, and the links
// that start them with the system. The file is for reading, and has no name any more.
func agentPackage(path string) (*os.File, int64, error) {
	program, err := os.ReadFile(path)
	if err != nil {
		return nil, 0, fileError("read", path, err)
	}
	fault := func(err error) error {
		return imprint.Errorf(imprint.Unavailable, "make", "package with the agent", "%w", err)
	}
	f, err := os.CreateTemp("", "imprint-agent-*.tar")
	if err != nil {
		return nil, 0, fault(err)
	}
	defer f.Close()
	defer os.Remove(f.Name())
	if err := writeAgentPackage(tar.NewWriter(f), program); err != nil {
		return nil, 0, fault(err)
	}
	size, err := f.Seek(0, 1)
	pkg, failed := os.Open(f.Name()) // one for both is not what QEMU takes for a disk that is only read
	if err := errors.Join(err, failed); err != nil {
		return nil, 0, fault(err)
	}
	return pkg, size, nil
}

func writeAgentPackage(w *tar.Writer, program []byte) error {
	const units, wanted = "usr/lib/systemd/system/", "etc/systemd/system/multi-user.target.wants/"
	const unit, keys = "imprint-agent.service", "imprint-ssh-keys.service"
	for _, e := range []struct {
		name, link string
		mode       int64
		content    []byte
	}{
		{agentPath[1:], "", 0o755, program},
		{units + unit, "", 0o644, agent.Unit},
		{units + keys, "", 0o644, agent.SSHKeysUnit},
		{wanted + unit, "/" + units + unit, 0o777, nil},
		{wanted + keys, "/" + units + keys, 0o777, nil},
	} {
		h := &tar.Header{Name: e.name, Mode: e.mode, Size: int64(len(e.content)), ModTime: time.Now(), Typeflag: tar.TypeReg}
		if e.link != "" {
			h.Typeflag, h.Linkname = tar.TypeSymlink, e.link
		}
		if err := w.WriteHeader(h); err != nil {
			return err
		}
		if _, err := w.Write(e.content); err != nil {
			return err
		}
	}
	return w.Close()
}
