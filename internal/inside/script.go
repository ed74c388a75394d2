package inside

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"imprint"
	"imprint/internal/confine"
	"imprint/internal/job"
	"imprint/internal/script"
)

const (
	// definitions is where OS definitions are unpacked, one for each task.
	definitions = "/os"
	// maxDefinition bounds one in bytes.
	maxDefinition = 64 << 20
)

func (e *Env) script(ctx context.Context, t *job.Script) (*job.Ran, error) {
	dir, err := e.definition(t)
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	for _, module := range t.Modules {
		if err := e.Modprobe(module); err != nil {
			e.Logf("%v", err)
		}
	}
	if err := mergeUsr(); err != nil {
		return nil, imprint.Errorf(imprint.Internal, "prepare", t.Program, "%w", err)
	}
	log := &boundedLog{to: e.Log()}
	defer log.end()
	s := script.Script{Command: confine.Command{
		Path: filepath.Join(dir, filepath.Base(t.Program)), Args: t.Args, Env: t.Env, Dir: dir,
		// It makes file systems and mounts them. What it could do with these rights ends
		// with the VM; the agent's port it cannot open, because the agent has it open.
		Capabilities: []int{unix.CAP_SYS_ADMIN, unix.CAP_MKNOD, unix.CAP_LINUX_IMMUTABLE, unix.CAP_SETFCAP},
		Network:      true, // that of the VM, which has one only if it was asked for
		Stdout:       log, Stderr: log,
		Limits: confine.Limits{Time: t.TimeLimit, Output: t.MaxOutput, Processes: t.MaxProcesses},
	}}
	for name, index := range t.Disks {
		device, err := e.Disk(index)
		if err != nil {
			return nil, err
		}
		s.Env = append(s.Env, name+"="+device)
		s.Devices = append(s.Devices, device)
	}
	if s.Secret, err = e.secretsOf(t.Secret); err != nil {
		return nil, err
	}
	if s.SecretFiles, err = e.secretsOf(t.SecretFiles); err != nil {
		return nil, err
	}
	for name, to := range map[string]*script.Stream{t.Pipe: &s.Pipe, t.Socket: &s.Socket} {
		if name != "" {
			one, err := e.Stream(name)
			if err != nil {
				return nil, err
			}
			*to = half{one}
		}
	}
	if t.Stdin != "" {
		in, err := e.Stream(t.Stdin)
		if err != nil {
			return nil, err
		}
		defer in.Close()
		s.Stdin = in
	}
	if t.Stdout != "" {
		out, err := e.Stream(t.Stdout)
		if err != nil {
			return nil, err
		}
		defer out.Close()
		s.Stdout = out
	}
	err = s.Run(ctx)
	var exit *confine.ExitError
	if errors.As(err, &exit) {
		status := exit.Status
		if exit.Signal != 0 {
			status = -1
		}
		return &job.Ran{Status: status}, imprint.Errorf(imprint.Conflict, "run", t.Program, "%w", exit)
	}
	if err != nil {
		return nil, err
	}
	return &job.Ran{}, nil
}

// mergeUsr has every program where a script may look for it: a distribution has /bin
// and /usr/bin in one, and scripts name their shell by either.
func mergeUsr() error {
	dirs := []string{"/bin", "/usr/bin", "/sbin", "/usr/sbin"}
	for _, from := range dirs {
		entries, err := os.ReadDir(from)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		for _, to := range dirs {
			if filepath.Base(to) != filepath.Base(from) || to == from {
				continue
			}
			if err := os.MkdirAll(to, 0o755); err != nil {
				return err
			}
			for _, e := range entries {
				err := os.Symlink(filepath.Join(from, e.Name()), filepath.Join(to, e.Name()))
				if err != nil && !errors.Is(err, fs.ErrExist) {
					return err
				}
			}
		}
	}
	return nil
}

// half is a stream whose Close ends what is written.
type half struct{ io.ReadWriteCloser }

func (h half) CloseWrite() error { return h.Close() }

func (e *Env) secretsOf(names map[string]string) (map[string]imprint.Secret, error) {
	values := map[string]imprint.Secret{}
	for variable, name := range names {
		value, err := e.Secret(name)
		if err != nil {
			return nil, err
		}
		values[variable] = value
	}
	return values, nil
}

// definition unpacks the definition, which the host made an archive of: files and
// directories without links.
func (e *Env) definition(t *job.Script) (dir string, err error) {
	device, err := e.Disk(t.Archive)
	if err != nil {
		return "", err
	}
	f, err := os.Open(device)
	if err != nil {
		return "", imprint.Errorf(imprint.Internal, "open", "OS definition", "%w", err)
	}
	defer f.Close()
	if err := os.MkdirAll(definitions, 0o755); err != nil {
		return "", imprint.Errorf(imprint.Internal, "make", definitions, "%w", err)
	}
	if dir, err = os.MkdirTemp(definitions, ""); err != nil {
		return "", imprint.Errorf(imprint.Internal, "make a directory in", definitions, "%w", err)
	}
	if err := extract(dir, io.LimitReader(f, min(t.Size, maxDefinition))); err != nil {
		return "", imprint.Errorf(imprint.Invalid, "unpack", "OS definition", "%w", err)
	}
	return dir, os.Chmod(dir, 0o755)
}

func extract(dir string, r io.Reader) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	for archive := tar.NewReader(r); ; {
		h, err := archive.Next()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
		name, mode := strings.TrimSuffix(h.Name, "/"), fs.FileMode(h.Mode).Perm()
		switch h.Typeflag {
		case tar.TypeDir:
			if err := root.Mkdir(name, 0o755); err != nil {
				return err
			}
		case tar.TypeReg:
			f, err := root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
			if err != nil {
				return err
			}
			_, err = io.Copy(f, archive)
			if closed := f.Close(); err == nil {
				err = closed
			}
			if err != nil {
				return err
			}
		default:
			return errors.New(h.Name + " is neither a file nor a directory")
		}
	}
}
