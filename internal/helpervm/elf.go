package helpervm

import (
	"bytes"
	"debug/elf"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"imprint"
	"imprint/internal/cpio"
)

// Limits of what is copied of the host's programs.
const (
	maxProgram   = 256 << 20 // bytes of a program or library
	maxLibraries = 512       // of one program
	maxTreeFiles = 20_000    // of a directory
	maxShebang   = 256
)

// programDirs is where the host's programs are looked for: not in the caller's PATH,
// because they run as root in the VM.
func programDirs() []string { return []string{"/usr/sbin", "/usr/bin", "/sbin", "/bin"} }

// tools copies the host's programs with the libraries that they load. What a program
// needs is read from it; nothing is run to find out.
type tools struct {
	a    *cpio.Writer
	dirs []string // where the dynamic loader looks, in order
}

func newTools(a *cpio.Writer) *tools { return &tools{a, loaderDirs("/etc/ld.so.conf", 0)} }

// loaderDirs are the directories of ld.so.conf(5), which ldconfig(8) would read, and
// the loader's own.
func loaderDirs(conf string, depth int) (dirs []string) {
	const maxConf, maxDepth = 64 << 10, 4
	b, err := os.ReadFile(conf)
	if err == nil && len(b) <= maxConf && depth < maxDepth {
		for line := range strings.Lines(string(b)) {
			line, _, _ = strings.Cut(line, "#")
			f := strings.Fields(line)
			switch {
			case len(f) == 2 && f[0] == "include":
				pattern := f[1]
				if !filepath.IsAbs(pattern) {
					pattern = filepath.Join(filepath.Dir(conf), pattern)
				}
				more, _ := filepath.Glob(pattern)
				for _, name := range more {
					dirs = append(dirs, loaderDirs(name, depth+1)...)
				}
			case len(f) == 1 && filepath.IsAbs(f[0]):
				dirs = append(dirs, f[0])
			}
		}
	}
	if depth == 0 {
		dirs = append(dirs, "/lib64", "/usr/lib64", "/lib", "/usr/lib")
	}
	return dirs
}

// program copies one that is given by name or path, and says whether the host has it.
func (t *tools) program(name string) (found bool, err error) {
	if strings.Contains(name, "/") {
		return t.executable(name)
	}
	for _, dir := range programDirs() {
		if found, err := t.executable(filepath.Join(dir, name)); found || err != nil {
			return found, err
		}
	}
	return false, nil
}

func (t *tools) executable(path string) (found bool, err error) {
	if t.a.Has(path) {
		return true, nil
	}
	b, err := readProgram(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if line, ok := bytes.CutPrefix(b, []byte("#!")); ok {
		line = line[:min(len(line), maxShebang)]
		line, _, _ = bytes.Cut(line, []byte{'\n'})
		t.a.File(path, 0o755, b)
		for _, word := range strings.Fields(string(line)) { // env(1) has the interpreter as its argument
			if _, err := t.program(word); err != nil {
				return false, err
			}
		}
		return true, nil
	}
	t.a.File(path, 0o755, b)
	return true, t.libraries(path, b)
}

// libraries copies what the program loads. All of it goes where the C library is: there
// every loader looks, without ld.so.cache.
func (t *tools) libraries(path string, program []byte) error {
	f, err := elf.NewFile(bytes.NewReader(program))
	if err != nil {
		return imprint.Errorf(imprint.Invalid, "read", path, "it is no program: %w", err)
	}
	loader := interpreter(f)
	if loader == "" {
		return nil // static
	}
	b, err := readProgram(loader)
	if err != nil {
		return err
	}
	t.a.File(loader, 0o755, b)

	type library struct {
		soname, path string
		file         []byte
	}
	type wanted struct {
		soname, by string
		own        []string // where the one that wants it says that it is
	}
	want := func(f *elf.File, by string) (list []wanted) {
		names, _ := f.ImportedLibraries()
		for _, n := range names {
			list = append(list, wanted{n, by, runPath(f, by)})
		}
		return list
	}
	var found []library
	seen := map[string]bool{}
	for queue := want(f, path); len(queue) > 0; queue = queue[1:] {
		w := queue[0]
		if seen[w.soname] || w.soname == filepath.Base(loader) {
			continue
		}
		seen[w.soname] = true
		if len(seen) > maxLibraries {
			return imprint.Errorf(imprint.Invalid, "read", path, "it loads more than %d libraries", maxLibraries)
		}
		at, b, lib := t.find(w.soname, slices.Concat(w.own, t.dirs), f)
		if lib == nil {
			return imprint.Errorf(imprint.NotFound, "find", w.soname, "%s loads it, and it is in none of the loader's directories", w.by)
		}
		found = append(found, library{w.soname, at, b})
		queue = append(queue, want(lib, at)...)
	}
	home := "/lib"
	for _, l := range found {
		if strings.HasPrefix(l.soname, "libc.so") {
			home = filepath.Dir(l.path)
		}
	}
	for _, l := range found {
		t.a.File(filepath.Join(home, l.soname), 0o755, l.file)
	}
	return nil
}

// find returns the library of that name for the same machine as the program.
func (t *tools) find(soname string, dirs []string, program *elf.File) (path string, b []byte, f *elf.File) {
	if strings.Contains(soname, "/") {
		return "", nil, nil
	}
	for _, dir := range dirs {
		path := filepath.Join(dir, soname)
		b, err := readProgram(path)
		if err != nil {
			continue
		}
		if f, err := elf.NewFile(bytes.NewReader(b)); err == nil && f.Machine == program.Machine && f.Class == program.Class {
			return path, b, f
		}
	}
	return "", nil, nil
}

// interpreter returns the dynamic loader that a program asks for, or "".
func interpreter(f *elf.File) string {
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP && p.Filesz <= maxShebang {
			b := make([]byte, p.Filesz)
			if _, err := p.ReadAt(b, 0); err == nil {
				return string(bytes.TrimRight(b, "\x00"))
			}
		}
	}
	return ""
}

// static reports whether program needs no dynamic loader.
func static(program []byte) bool {
	f, err := elf.NewFile(bytes.NewReader(program))
	return err == nil && interpreter(f) == ""
}

// runPath is where a program or library says itself that its libraries are.
func runPath(f *elf.File, path string) (dirs []string) {
	for _, tag := range []elf.DynTag{elf.DT_RPATH, elf.DT_RUNPATH} {
		lists, _ := f.DynString(tag)
		for _, list := range lists {
			for dir := range strings.SplitSeq(list, ":") {
				dir = strings.NewReplacer("$ORIGIN", filepath.Dir(path), "${ORIGIN}", filepath.Dir(path)).Replace(dir)
				if filepath.IsAbs(dir) {
					dirs = append(dirs, dir)
				}
			}
		}
	}
	return dirs
}

func readProgram(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxProgram {
		return nil, imprint.Errorf(imprint.Invalid, "read", path, "it is no program or larger than %d MiB", maxProgram>>20)
	}
	return os.ReadFile(path)
}

// files copies a file, or all that is below a directory.
func (t *tools) files(root string) error {
	n := 0
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if n++; n > maxTreeFiles {
			return imprint.Errorf(imprint.Invalid, "read", root, "it has more than %d files", maxTreeFiles)
		}
		info, err := d.Info()
		switch {
		case err != nil:
			return err
		case info.IsDir():
			t.a.Dir(path, info.Mode())
		case info.Mode().IsRegular():
			b, err := readProgram(path)
			if err != nil {
				return err
			}
			t.a.File(path, info.Mode(), b)
		case info.Mode().Type() == fs.ModeSymlink:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			t.a.Link(path, target)
		}
		return nil
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
