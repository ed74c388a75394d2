package imprint

import (
	"encoding/hex"
	"net/url"
	"slices"
	"strings"
	"time"
)

// Limits on what an installation is described by.
const (
	MaxSourceLen     = 2 << 10  // bytes of a URL or path
	MaxKeyText       = 64 << 10 // bytes of an image's key, and separately of its authorities
	MaxPackages      = 16       // personalization packages
	MaxOSNameLen     = 64       // bytes of an OS definition's name, and separately of a variant's
	MaxInstallMedia  = 4        // installation media
	MaxInstallDisks  = 8        // extra disks of an installation
	MaxInstallNICs   = 4        // extra network interfaces of an installation
	MaxKernelLineLen = 2 << 10  // bytes of a kernel's command line, as much as x86 Linux takes
)

// Image is what an instance's disk is written from. It holds no secret: a
// user name and password are those in a parameter that it names.
type Image struct {
	// Source is an absolute URL with the scheme file, http or https.
	Source string `json:"source"`
	// Format is raw, qcow2 or vmdk; if it is "", the content tells. Compression
	// around a raw image is always recognized by its content.
	Format string `json:"format,omitempty"`
	// Sum is that of the file at Source as it is fetched: "sha256:" or "sha512:"
	// and lower-case hexadecimal.
	Sum string `json:"sum,omitempty"`
	// Sums is the URL of a list such as SHA256SUMS, in the form of coreutils, in
	// which the last element of Source's path is looked up.
	Sums string `json:"sums,omitempty"`
	// Signature is the URL of a detached signature: of the list, or of the image if
	// there is no list. "" is none, or one that the list has around it.
	Signature string `json:"signature,omitempty"`
	// Key is the only public key whose signature counts: OpenPGP in ASCII armour, or
	// a minisign public key.
	Key string `json:"key,omitempty"`
	// CA has the certificates, as PEM, that an https source is checked by in the place
	// of the system's.
	CA string `json:"ca,omitempty"`
	// Credentials names the private or secret parameter that holds "user:password"
	// for HTTP basic authentication; "" is none.
	Credentials string `json:"credentials,omitempty"`
}

// Package is a personalization package: an archive with the shape of the file
// system, unpacked onto the installed machine's root.
type Package struct {
	// Source is an absolute URL with the scheme file, http or https.
	Source string `json:"source"`
	Sum    string `json:"sum,omitempty"` // as in [Image]
	CA     string `json:"ca,omitempty"`  // as in [Image]
	// Credentials is as in [Image].
	Credentials string `json:"credentials,omitempty"`
	// Devices allows the package to hold device nodes.
	Devices bool `json:"devices,omitempty"`
}

// OS names an OS definition, whose scripts complete the installation.
type OS struct {
	Name string `json:"name"`
	// Variant is one of those that the definition offers; "" where it offers none.
	Variant string `json:"variant,omitempty"`
}

// String returns "name", or "name+variant" as Ganeti writes it.
func (o OS) String() string {
	if o.Variant == "" {
		return o.Name
	}
	return o.Name + "+" + o.Variant
}

// ParseOS is the inverse of [OS.String]. It fails with kind [Invalid].
func ParseOS(s string) (OS, error) {
	name, variant, has := strings.Cut(s, "+")
	o := OS{name, variant}
	if has && variant == "" {
		return o, Errorf(Invalid, "check", "os", "%.64q ends in a plus sign, and no variant", s)
	}
	return o, o.Check()
}

// Check fails with kind [Invalid] unless o can be the name of an OS definition,
// which is that of a directory, and of a variant.
func (o OS) Check() error {
	for _, part := range []struct{ what, s string }{{"os", o.Name}, {"os variant", o.Variant}} {
		if part.s == "" && part.what != "os" {
			continue
		}
		if !plainName(part.s) {
			return Errorf(Invalid, "check", part.what, "%.64q is not a name", part.s).
				WithHint("use 1 to %d letters, digits and, after the first, dots, hyphens and underscores, as in debootstrap+default", MaxOSNameLen)
		}
	}
	return nil
}

func plainName(s string) bool {
	if s == "" || len(s) > MaxOSNameLen {
		return false
	}
	for i, c := range []byte(s) {
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !letter && (i == 0 || !strings.ContainsRune("._-", rune(c))) {
			return false
		}
	}
	return true
}

// Check fails with kind [Invalid] if m describes no image, or one that nobody
// could trust: what comes over plain HTTP needs a sum or a signature.
func (m *Image) Check() error {
	if err := checkSource("image.source", m.Source); err != nil {
		return err
	}
	if m.Format != "" && !slices.Contains([]string{"raw", "qcow2", "vmdk"}, m.Format) {
		return Errorf(Invalid, "check", "image.format", "%.16q is none of raw, qcow2 and vmdk", m.Format).
			WithHint("leave it out, and the content tells; compression is recognized in any case")
	}
	if err := checkSum("image.sum", m.Sum); err != nil {
		return err
	}
	for _, extra := range []struct{ field, source string }{{"image.sums", m.Sums}, {"image.signature", m.Signature}} {
		if extra.source != "" {
			if err := checkSource(extra.field, extra.source); err != nil {
				return err
			}
		}
	}
	switch {
	case m.Signature != "" && m.Key == "":
		return Errorf(Invalid, "check", "image.signature", "has no key with which it is checked").
			WithHint("give the signer's public key as image.key or image.keyFile")
	case m.Key != "" && m.Signature == "" && m.Sums == "":
		return Errorf(Invalid, "check", "image.key", "is given, but nothing that it signed").
			WithHint("say with image.signature where the signature is")
	case plainHTTP(m.Source) && m.Sum == "" && m.Key == "":
		return Errorf(Invalid, "check", "image.source", "comes over plain HTTP, where whoever is on the way could change it").
			WithHint("give image.sum, or image.signature and image.key, or use https")
	}
	return checkTexts("image", m.Key, m.CA, m.Credentials)
}

// Check fails with kind [Invalid] if p describes no package; field names it in
// the error.
func (p *Package) Check(field string) error {
	if err := checkSource(field+".source", p.Source); err != nil {
		return err
	}
	if err := checkSum(field+".sum", p.Sum); err != nil {
		return err
	}
	if plainHTTP(p.Source) && (p.Sum == "" || p.Credentials != "") {
		return Errorf(Invalid, "check", field+".source", "comes over plain HTTP, where whoever is on the way could read and change it").
			WithHint("use https; a package without credentials may come over http if %s.sum is given", field)
	}
	return checkTexts(field, "", p.CA, p.Credentials)
}

// checkSource judges a URL; field names it in the error, which shows no password.
func checkSource(field, s string) error {
	if s == "" {
		return Errorf(Invalid, "check", field, "is missing").WithHint("give a URL like https://images.example/debian.qcow2 or file:/srv/images/debian.raw")
	}
	u, err := url.Parse(s)
	switch {
	case len(s) > MaxSourceLen:
		return Errorf(Invalid, "check", field, "has %d bytes; %d are allowed", len(s), MaxSourceLen)
	case err != nil:
		return Errorf(Invalid, "check", field, "is not a URL").WithHint("percent-encode what a URL cannot hold")
	case u.User != nil:
		return Errorf(Invalid, "check", field, "has a user name in its URL, and everybody may see the spec").
			WithHint("put user:password into a private parameter, and name that as credentials")
	case u.Scheme == "file" && (u.Host != "" || !strings.HasPrefix(u.Path, "/") || u.RawQuery != "" || u.Fragment != ""):
		return Errorf(Invalid, "check", field, "%q does not name a file by its absolute path", s).WithHint("write file:/srv/images/debian.raw")
	case u.Scheme == "file":
	case u.Scheme != "http" && u.Scheme != "https":
		return Errorf(Invalid, "check", field, "%q has the scheme %q; there are file, http and https", s, u.Scheme)
	case u.Host == "" || u.Fragment != "":
		return Errorf(Invalid, "check", field, "%q is not the URL of a file", s)
	}
	return nil
}

// plainHTTP reports whether a URL that was checked has the scheme http, in whatever case
// it is written (RFC 3986 section 3.1).
func plainHTTP(s string) bool {
	u, err := url.Parse(s)
	return err == nil && u.Scheme == "http"
}

// checkSum judges "sha256:" or "sha512:" and hexadecimal; "" is none.
func checkSum(field, s string) error {
	if s == "" {
		return nil
	}
	algorithm, digits, _ := strings.Cut(s, ":")
	want := map[string]int{"sha256": 32, "sha512": 64}[algorithm]
	b, err := hex.DecodeString(digits)
	if want == 0 || err != nil || len(b) != want || strings.ToLower(digits) != digits {
		return Errorf(Invalid, "check", field, "%.140q is not a sum", s).
			WithHint("write sha256: and 64, or sha512: and 128, lower-case hexadecimal digits")
	}
	return nil
}

func checkTexts(field, key, ca, credentials string) error {
	for name, text := range map[string]string{".key": key, ".ca": ca} {
		switch {
		case len(text) > MaxKeyText:
			return Errorf(Invalid, "check", field+name, "has %d bytes; %d are allowed", len(text), MaxKeyText)
		case strings.Contains(text, "PRIVATE KEY"):
			return Errorf(Invalid, "check", field+name, "is a private key, which everybody would see; give the public one")
		}
	}
	if len(credentials) > MaxParamNameLen {
		return Errorf(Invalid, "check", field+".credentials", "is not the name of a parameter")
	}
	return nil
}

// BootDevice is what firmware may boot from.
type BootDevice string

// The devices of a boot order.
const (
	BootCD      BootDevice = "cd"
	BootDisk    BootDevice = "disk"
	BootFloppy  BootDevice = "floppy"
	BootNetwork BootDevice = "network"
)

// InstallSetup is what a machine has for one installation, beside what it
// always has. It is kept until that installation succeeded, and then gone: the
// machine's later boots are without it. It holds no secret.
type InstallSetup struct {
	// Generation is the first of the instance's lives for which it counts: until
	// then the machine boots without it. 0 has it follow from the instance.
	Generation Generation `json:"generation,omitempty"`
	// Media are read-only images in drives that the machine has no other use for.
	Media []InstallMedium `json:"media,omitempty"`
	// BootOrder is in which order firmware tries what it may boot from; nil is its own.
	BootOrder []BootDevice `json:"bootOrder,omitempty"`
	// Disks come after the machine's own.
	Disks []InstallDisk `json:"disks,omitempty"`
	// NICs come after the machine's own.
	NICs []InstallNIC `json:"nics,omitempty"`
	// Kernel and Initrd are files on the machine's host, booted directly with the
	// command line Append.
	Kernel string `json:"kernel,omitempty"`
	Initrd string `json:"initrd,omitempty"`
	Append string `json:"append,omitempty"`
	// Set is when, and By by whom, this was asked for.
	Set time.Time `json:"set,omitzero"`
	By  string    `json:"by,omitempty"`
}

// InstallMedium is a file on the machine's host that it finds in a drive.
type InstallMedium struct {
	Drive BootDevice `json:"drive"` // [BootCD], [BootFloppy] or [BootDisk]
	Path  string     `json:"path"`
}

// InstallDisk is a disk on the machine's host.
type InstallDisk struct {
	Path   string `json:"path"`
	Format string `json:"format,omitempty"` // raw or qcow2; "" is raw
	// Writable lets the installation change it; else what it writes is dropped.
	Writable bool `json:"writable,omitempty"`
}

// InstallNIC is a network interface: on a tap that the host has, or else on a
// network of the hypervisor's own.
type InstallNIC struct {
	MAC string `json:"mac,omitempty"` // "" is the hypervisor's choice
	Tap string `json:"tap,omitempty"`
}

// IsZero reports whether n asks for nothing.
func (n *InstallSetup) IsZero() bool {
	return len(n.Media)+len(n.BootOrder)+len(n.Disks)+len(n.NICs) == 0 && n.Kernel == "" && n.Initrd == "" && n.Append == ""
}

// Check fails with kind [Invalid] if no machine could be given n.
func (n *InstallSetup) Check() error {
	fault := func(field, format string, args ...any) *Error {
		return Errorf(Invalid, "check", "setup."+field, format, args...)
	}
	for _, list := range []struct {
		field    string
		n, limit int
	}{{"media", len(n.Media), MaxInstallMedia}, {"disks", len(n.Disks), MaxInstallDisks}, {"nics", len(n.NICs), MaxInstallNICs}} {
		if list.n > list.limit {
			return fault(list.field, "%d of them; %d are allowed", list.n, list.limit)
		}
	}
	drives := []BootDevice{BootCD, BootFloppy, BootDisk}
	for _, m := range n.Media {
		if !slices.Contains(drives, m.Drive) {
			return fault("media", "the drive %.16q is none of cd, floppy and disk", m.Drive)
		}
		if err := checkHostPath("media", m.Path); err != nil {
			return err
		}
	}
	for i, d := range n.BootOrder {
		if d != BootNetwork && !slices.Contains(drives, d) {
			return fault("bootOrder", "%.16q is none of cd, disk, floppy and network", d)
		}
		if slices.Contains(n.BootOrder[:i], d) {
			return fault("bootOrder", "%s is there twice", d)
		}
	}
	for _, d := range n.Disks {
		if d.Format != "" && d.Format != "raw" && d.Format != "qcow2" {
			return fault("disks", "the format %.16q is neither raw nor qcow2", d.Format)
		}
		if err := checkHostPath("disks", d.Path); err != nil {
			return err
		}
	}
	for field, path := range map[string]string{"kernel": n.Kernel, "initrd": n.Initrd} {
		if path != "" {
			if err := checkHostPath(field, path); err != nil {
				return err
			}
		}
	}
	switch {
	case n.Kernel == "" && n.Initrd+n.Append != "":
		return fault("kernel", "it is missing, which the initial RAM disk and the command line are for")
	case n.Kernel != "" && len(n.BootOrder) > 0:
		return fault("bootOrder", "a kernel is booted directly, so that firmware does not choose").
			WithHint("give a kernel, or a boot order")
	case len(n.Append) > MaxKernelLineLen || strings.ContainsAny(n.Append, "\x00\n\r"):
		return fault("append", "it is not a line of at most %d bytes", MaxKernelLineLen)
	}
	return nil
}

func checkHostPath(field, path string) error {
	if !strings.HasPrefix(path, "/") || len(path) > MaxSourceLen || strings.ContainsAny(path, "\x00\n\r") {
		return Errorf(Invalid, "check", "setup."+field, "%.128q is not the absolute path of a file on the machine's host", path)
	}
	return nil
}

// SetupGeneration returns the generation for whose installation a setup is that is asked
// for now: the present one until a key has claimed it, or it ended, and then the
// next one.
func (i *Instance) SetupGeneration() Generation {
	if i.Enrolment.Claim != nil || !i.Enrolment.State.Open() {
		return i.Generation + 1
	}
	return i.Generation
}

// Setup returns what the machine has for the installation of its present
// generation, or nil.
func (i *Instance) Setup() *InstallSetup { return i.InstallSetup.At(i.Generation) }

// At returns n if it counts for generation g, else nil.
func (n *InstallSetup) At(g Generation) *InstallSetup {
	if n == nil || g < n.Generation {
		return nil
	}
	return n
}

// clone returns a copy that shares no memory with n.
func (n *InstallSetup) clone() *InstallSetup {
	c := *n
	c.Media, c.BootOrder = slices.Clone(n.Media), slices.Clone(n.BootOrder)
	c.Disks, c.NICs = slices.Clone(n.Disks), slices.Clone(n.NICs)
	return &c
}
