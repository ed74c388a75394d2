package repair

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"imprint"
)

// Guest runs a program of the system's own, an absolute path and arguments, below dir
// as its root, and confined: it may change the system and nothing else. Output goes to
// out. It fails with an error that says how the program ended.
type Guest func(ctx context.Context, dir string, out io.Writer, argv ...string) error

// maxOutput is how much of what a program of the system prints is looked at.
const maxOutput = 8 << 20

// maxDriver is how long the name of a module may be (MODULE_NAME_LEN).
const maxDriver = 56

// isDriver reports whether s is the name of a module.
func isDriver(s string) bool {
	const chars = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-"
	return s != "" && len(s) < maxDriver && s[0] != '-' && strings.Trim(s, chars) == ""
}

// kernels returns the versions of the kernels that have an image in /boot and modules.
func (t *tree) kernels() []string {
	var versions []string
	for _, name := range t.readDir("boot") {
		version, ok := strings.CutPrefix(name, "vmlinuz-")
		if ok && !strings.Contains(version, "rescue") && t.has(path.Join("lib/modules", version, "modules.dep")) {
			versions = append(versions, version)
		}
	}
	slices.Sort(versions)
	return versions
}

// lacks returns those of the drivers that a kernel neither has as a module nor built in.
func (t *tree) lacks(version string, drivers []string) ([]string, error) {
	var all []byte
	for _, name := range []string{"modules.dep", "modules.builtin"} {
		b, err := t.read(path.Join("lib/modules", version, name))
		if err != nil && name == "modules.dep" {
			return nil, imprint.Errorf(imprint.Invalid, "read", "the modules of kernel "+version, "%w", err)
		}
		all = append(append(all, b...), '\n')
	}
	has := map[string]bool{}
	for line := range strings.Lines(string(all)) {
		file, _, _ := strings.Cut(strings.TrimSpace(line), ":")
		name, _, _ := strings.Cut(path.Base(file), ".ko")
		has[module(name)] = true
	}
	return slices.DeleteFunc(slices.Clone(drivers), func(d string) bool { return has[module(d)] }), nil
}

// builtIn reports whether a kernel has a driver without a module.
func (t *tree) builtIn(version, driver string) bool {
	b, _ := t.read(path.Join("lib/modules", version, "modules.builtin"))
	for line := range strings.Lines(string(b)) {
		if name, _, _ := strings.Cut(path.Base(strings.TrimSpace(line)), ".ko"); module(name) == module(driver) {
			return true
		}
	}
	return false
}

// module is a module's name as the kernel has it.
func module(name string) string { return strings.ReplaceAll(name, "-", "_") }

// builder is a program that builds an initramfs.
type builder struct {
	program string
	drivers string // the file in which drivers are named
	list    func(drivers []string) []byte
	build   func(version string, exists bool) []string
	show    string // the program that shows what is in one
	image   string // its name in /boot, before and behind the kernel's version
	suffix  string
}

func builders() []builder {
	return []builder{{
		program: "usr/sbin/update-initramfs", drivers: "etc/initramfs-tools/modules", show: "/usr/bin/lsinitramfs", image: "initrd.img-",
		list: func(drivers []string) []byte { return []byte(strings.Join(drivers, "\n") + "\n") },
		build: func(version string, exists bool) []string {
			if exists {
				return []string{"/usr/sbin/update-initramfs", "-u", "-k", version}
			}
			return []string{"/usr/sbin/update-initramfs", "-c", "-k", version}
		},
	}, {
		program: "usr/bin/dracut", drivers: "etc/dracut.conf.d/imprint-drivers.conf", show: "/usr/bin/lsinitrd", image: "initramfs-", suffix: ".img",
		list: func(drivers []string) []byte {
			return fmt.Appendf(nil, "add_drivers+=\" %s \"\n", strings.Join(drivers, " "))
		},
		build: func(version string, _ bool) []string {
			return []string{"/usr/bin/dracut", "--force", "--kver", version}
		},
	}}
}

// initramfs is what a rebuilding of the initramfs takes.
type initramfs struct {
	builder
	kernels []string
	drivers []string
}

// initramfs finds out whether and how the system's initramfs can get drivers, and
// changes nothing. It fails with kind [imprint.Invalid] for a driver's name that is
// none, and with [imprint.NotFound] if the system has no builder, no kernel or no such driver.
func (t *tree) initramfs(drivers []string) (*initramfs, error) {
	const op, operand = "rebuild", "initramfs"
	for _, d := range drivers {
		if !isDriver(d) {
			return nil, imprint.Errorf(imprint.Invalid, "add", "driver "+printable(d), "it is no name of a kernel module")
		}
	}
	i := slices.IndexFunc(builders(), func(b builder) bool { return t.has(b.program) })
	if i < 0 {
		return nil, imprint.Errorf(imprint.NotFound, op, operand, "the system has neither update-initramfs nor dracut").
			WithHint("install one of them into the image, or leave the initramfs as it is")
	}
	r := &initramfs{builders()[i], t.kernels(), drivers}
	if len(r.kernels) == 0 {
		return nil, imprint.Errorf(imprint.NotFound, op, operand, "the system has no kernel with modules in /boot").
			WithHint("it boots from a kernel outside of the image, which has to have the drivers then")
	}
	for _, version := range r.kernels {
		missing, err := t.lacks(version, drivers)
		if err != nil {
			return nil, err
		}
		if len(missing) > 0 {
			return nil, imprint.Errorf(imprint.NotFound, "add", "driver "+missing[0], "kernel %s has no module of that name", version).
				WithHint("see what it has: ls /lib/modules/%s/kernel/drivers in the image", version)
		}
	}
	return r, nil
}

// rebuild builds the initramfs of every kernel again, and looks whether the drivers are in it.
func (r *initramfs) rebuild(ctx context.Context, s *System, guest Guest) error {
	if err := r.name(s.tree); err != nil {
		return err
	}
	for _, version := range r.kernels {
		image := "boot/" + r.image + version + r.suffix
		argv := r.build(version, s.tree.has(image))
		s.env.Logf("%s", strings.Join(argv, " "))
		if err := guest(ctx, s.Dir, s.env.Log(), argv...); err != nil {
			return imprint.Errorf(imprint.Invalid, "rebuild", "initramfs of kernel "+version, "%s: %w", path.Base(argv[0]), err).
				WithHint("the log has what it printed")
		}
		if err := r.verify(ctx, s, guest, version, image); err != nil {
			return err
		}
	}
	return nil
}

// name names the drivers where the builder looks for them, so that they stay in when
// the system gets another kernel.
func (r *initramfs) name(t *tree) error {
	if len(r.drivers) == 0 {
		return nil
	}
	b, _ := t.read(r.builder.drivers)
	var missing []string
	for _, d := range r.drivers {
		if !slices.Contains(strings.Fields(string(b)), d) {
			missing = append(missing, d)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	if len(b) > 0 && b[len(b)-1] != '\n' {
		b = append(b, '\n')
	}
	if err := t.write(r.builder.drivers, append(b, r.list(missing)...), 0o644); err != nil {
		return imprint.Errorf(imprint.Unavailable, "write", "/"+r.builder.drivers, "%w", err)
	}
	return nil
}

// verify lists what is in an initramfs: success is that the drivers are there.
func (r *initramfs) verify(ctx context.Context, s *System, guest Guest, version, image string) error {
	if len(r.drivers) == 0 {
		return nil
	}
	out := &limited{left: maxOutput}
	if err := guest(ctx, s.Dir, out, r.show, "/"+image); err != nil {
		return imprint.Errorf(imprint.Invalid, "look into", "/"+image, "%s: %w", r.show, err)
	}
	has := map[string]bool{}
	for line := range strings.Lines(out.String()) {
		if f := strings.Fields(line); len(f) > 0 {
			if name, _, ok := strings.Cut(path.Base(f[len(f)-1]), ".ko"); ok {
				has[module(name)] = true
			}
		}
	}
	for _, d := range r.drivers {
		if !has[module(d)] && !s.tree.builtIn(version, d) {
			return imprint.Errorf(imprint.Internal, "rebuild", "initramfs of kernel "+version, "driver %s is not in it though %s was told", d, r.builder.build(version, true)[0])
		}
	}
	return nil
}

// limited keeps the first bytes that are written to it.
type limited struct {
	bytes.Buffer
	left int
}

func (l *limited) Write(b []byte) (int, error) {
	n, err := l.Buffer.Write(b[:min(len(b), l.left)])
	if l.left -= n; n < len(b) && err == nil {
		err = errors.New("it prints too much")
	}
	return n, err
}
