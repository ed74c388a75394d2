package osdef

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"imprint"
	"imprint/internal/durable"
)

// DefaultTrust is the file that lists the definitions that the operator trusts.
const DefaultTrust = "/etc/imprint/trusted-os"

// maxTrust bounds that file in bytes.
const maxTrust = 1 << 20

// digest is the SHA-256 over the names, modes and content of all files below dir.
// A symbolic link counts as the file that it leads to, because that is what runs, so
// that a copy has the same digest; what is neither a file nor a directory is refused.
func digest(dir string) (imprint.Digest, error) {
	h := sha256.New()
	files, bytes := 0, int64(0)
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		info, err := os.Stat(path)
		if err != nil {
			return err
		}
		if files++; files > maxFiles {
			return reason("it has more than %d files", maxFiles)
		}
		fmt.Fprintf(h, "%q", name)
		switch {
		case info.IsDir() && e.Type()&fs.ModeSymlink != 0:
			return reason("its link %s leads to a directory, which nobody could vouch for", name)
		case info.IsDir():
			fmt.Fprintln(h, " directory")
			return nil
		case !info.Mode().IsRegular():
			return reason("its file %s is neither a file nor a directory", name)
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		content := sha256.New()
		n, err := io.Copy(content, io.LimitReader(f, maxBytes-bytes+1))
		if bytes += n; bytes > maxBytes {
			return reason("its files have more than %d bytes", int64(maxBytes))
		}
		fmt.Fprintf(h, " %o %x\n", info.Mode().Perm(), content.Sum(nil))
		return err
	})
	if err != nil {
		return "", cause(err)
	}
	return imprint.Digest(hex.EncodeToString(h.Sum(nil))), nil
}

// Trust is the file in which the operator marks definitions: a digest and a name on
// each line. It is the operator's word that this definition, as it is now, may run
// on the host.
type Trust struct{ Path string }

// Trusts fails with kind [imprint.Denied] unless d is marked and has not changed
// since.
func (t Trust) Trusts(d *Definition) error {
	marks, err := t.read()
	if err != nil {
		return err
	}
	mark, ok := marks[d.Name]
	denied := func(format string, args ...any) *imprint.Error {
		return imprint.Errorf(imprint.Denied, "trust", "OS definition "+d.Name, format, args...).
			WithHint("look at %s, and then: imprint os trust %s", d.Dir, d.Name)
	}
	switch {
	case !ok:
		return denied("the operator has not marked it, so that no script of it runs on this host")
	case d.Digest == "" || mark != d.Digest:
		return denied("it has changed since the operator marked it: it is sha256:%.16s, and was sha256:%.16s", d.Digest, mark)
	}
	return nil
}

// Mark marks d as it is now.
func (t Trust) Mark(d *Definition) error {
	if d.Digest == "" {
		return imprint.Errorf(imprint.Invalid, "trust", "OS definition "+d.Name, "%s", strings.Join(d.Problems, "; "))
	}
	if err := owned(d.Dir); err != nil {
		return err
	}
	return t.change(func(marks map[string]imprint.Digest) { marks[d.Name] = d.Digest })
}

// Unmark takes the mark away. It may be repeated.
func (t Trust) Unmark(name string) error {
	if _, err := os.Lstat(t.Path); errors.Is(err, fs.ErrNotExist) {
		return nil // nothing is marked
	}
	return t.change(func(marks map[string]imprint.Digest) { delete(marks, name) })
}

func (t Trust) read() (map[string]imprint.Digest, error) {
	f, err := os.Open(t.Path)
	if errors.Is(err, fs.ErrNotExist) {
		return map[string]imprint.Digest{}, nil
	}
	if err != nil {
		return nil, imprint.Errorf(imprint.Denied, "read", t.Path, "%w", cause(err))
	}
	defer f.Close()
	if err := owned(t.Path); err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(f, maxTrust+1))
	if err != nil || len(b) > maxTrust {
		return nil, imprint.Errorf(imprint.Invalid, "read", t.Path, "more than %d bytes, or it cannot be read", maxTrust)
	}
	return parseTrust(t.Path, b)
}

func parseTrust(path string, b []byte) (map[string]imprint.Digest, error) {
	marks := map[string]imprint.Digest{}
	for _, line := range linesOf(b) {
		d, name, _ := strings.Cut(line, " ")
		name = strings.TrimSpace(name)
		if !imprint.ValidDigest(imprint.Digest(d)) || (imprint.OS{Name: name}).Check() != nil {
			return nil, imprint.Errorf(imprint.Invalid, "read", path, "the line %.120q is not a digest and a name", line)
		}
		marks[name] = imprint.Digest(d)
	}
	return marks, nil
}

func (t Trust) change(how func(map[string]imprint.Digest)) error {
	marks, err := t.read()
	if err != nil {
		return err
	}
	how(marks)
	var b strings.Builder
	b.WriteString("# OS definitions that may run on this host, as they were when the operator marked them.\n")
	for _, name := range slices.Sorted(maps.Keys(marks)) {
		fmt.Fprintf(&b, "%s  %s\n", marks[name], name)
	}
	err = os.MkdirAll(filepath.Dir(t.Path), 0o755)
	if err == nil {
		err = durable.WriteFile(t.Path, []byte(b.String()), 0o644)
	}
	if err != nil {
		kind := imprint.Unavailable
		if errors.Is(err, fs.ErrPermission) {
			kind = imprint.Denied
		}
		return imprint.Errorf(kind, "write", t.Path, "%w", cause(err))
	}
	return nil
}

// owned fails with kind [imprint.Denied] if somebody but root and this process's
// user could change the file or directory at path.
func owned(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return imprint.Errorf(imprint.NotFound, "look at", path, "%w", cause(err))
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if ok && (stat.Uid != 0 && int(stat.Uid) != os.Geteuid() || info.Mode().Perm()&0o022 != 0) {
		return imprint.Errorf(imprint.Denied, "trust", path, "others than root can change it (mode %o, owner %d)", info.Mode().Perm(), stat.Uid).
			WithHint("chown root %s; chmod go-w %s", path, path)
	}
	return nil
}
