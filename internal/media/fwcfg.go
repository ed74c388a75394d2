package media

import (
	"fmt"
	"path/filepath"
	"strings"

	"imprint"
)

// Limits on files of QEMU's fw_cfg (docs/specs/fw_cfg.txt).
const (
	fwCfgName = 55 // bytes, of which "opt/" takes four
	// fwCfgCount is how many files there may be: QEMU has 32 places and needs up to
	// 16 of them itself; if they do not suffice it aborts.
	fwCfgCount = 12
	// configLine is how many bytes QEMU reads of a line of a configuration file.
	configLine = 1000
)

// Beside the files are those that attach them to a machine: QEMUConfig is for QEMU's
// -readconfig.
const (
	QEMUConfig = "qemu.conf"
	libvirtXML = "libvirt.xml"
)

// FWCfg returns what is to be in the directory dir, an absolute path, so that QEMU
// shows v's files in its fw_cfg, below "opt/": the files themselves, and beside them
// what names them, for "-readconfig" and for a domain of libvirt's. Names are those of
// the form [dialect.FWCfg]. The label and the time play no part. It fails as [ISO] does.
func FWCfg(v *Volume, dir string) (map[string][]byte, error) {
	if len(v.Files) == 0 || len(v.Files) > fwCfgCount {
		return nil, imprint.Errorf(imprint.Exhausted, "write", "fw_cfg", "%d files; there may be 1 to %d", len(v.Files), fwCfgCount)
	}
	if err := checkConfigPath(dir); err != nil {
		return nil, err
	}
	files, size := map[string][]byte{}, int64(0)
	var conf strings.Builder
	info := sysinfo{Type: "fwcfg"}
	for i, path := range sortedPaths(v.Files) {
		if _, _, err := firmwareFile(path, "fw_cfg", fwCfgName-len("opt/")); err != nil {
			return nil, err
		}
		files[path] = v.Files[path]
		size += int64(len(v.Files[path]))
		at := filepath.Join(dir, path)
		fmt.Fprintf(&conf, "[fw_cfg \"imprint%d\"]\n  name = \"opt/%s\"\n  file = \"%s\"\n", i, path, at)
		info.Entries = append(info.Entries, sysinfoEntry{Name: "opt/" + path, File: at})
	}
	if size > maxCredentials {
		return nil, tooLarge("fw_cfg", size, maxCredentials)
	}
	files[QEMUConfig], files[libvirtXML] = []byte(conf.String()), xmlOf(domain{Info: info})
	return files, nil
}

// checkConfigPath fails if a file of QEMU's configuration cannot have the path of a
// file in dir: there is no escape for a quote.
func checkConfigPath(dir string) error {
	invalid := func(format string, args ...any) error {
		return imprint.Errorf(imprint.Invalid, "write", "directory "+dir, format, args...).
			WithHint("choose another directory")
	}
	switch {
	case !filepath.IsAbs(dir):
		return invalid("QEMU needs an absolute path")
	case strings.ContainsAny(dir, "\"\n"):
		return invalid("no file of QEMU's configuration has a name with a quote or a line break")
	case len(dir) > configLine-2*fwCfgName:
		return invalid("its name has %d bytes; QEMU reads %d", len(dir), configLine-2*fwCfgName)
	}
	return nil
}
