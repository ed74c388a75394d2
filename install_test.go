package imprint_test

import (
	"strings"
	"testing"

	"imprint"
)

func TestOS(t *testing.T) {
	for text, want := range map[string]imprint.OS{
		"debootstrap": {Name: "debootstrap"}, "debootstrap+default": {Name: "debootstrap", Variant: "default"}, "a.b-c_9+x": {Name: "a.b-c_9", Variant: "x"},
	} {
		if got, err := imprint.ParseOS(text); err != nil || got != want || got.String() != text {
			t.Errorf("%s: got %+v, written %s, %v", text, got, got, err)
		}
	}
	for _, text := range []string{"", "+", "a+", "+a", "..", "a/b", "a+b+c", "-a", "a+../b", "a\x00", "é", strings.Repeat("x", imprint.MaxOSNameLen+1)} {
		if _, err := imprint.ParseOS(text); imprint.KindOf(err) != imprint.Invalid {
			t.Errorf("%q: got %v", text, err)
		}
	}
}

// What a machine cannot be given is refused before it is stored.
func TestInstallSetupCheck(t *testing.T) {
	good := imprint.InstallSetup{
		Media:     []imprint.InstallMedium{{Drive: imprint.BootCD, Path: "/srv/netinst.iso"}},
		BootOrder: []imprint.BootDevice{imprint.BootCD, imprint.BootDisk},
		Disks:     []imprint.InstallDisk{{Path: "/srv/scratch.qcow2", Format: "qcow2", Writable: true}},
		NICs:      []imprint.InstallNIC{{}},
	}
	if err := good.Check(); err != nil || good.IsZero() {
		t.Errorf("a good one: %v", err)
	}
	for what, n := range map[string]imprint.InstallSetup{
		"a relative path":         {Kernel: "vmlinuz"},
		"a drive of no sort":      {Media: []imprint.InstallMedium{{Drive: imprint.BootNetwork, Path: "/x"}}},
		"no path":                 {Media: []imprint.InstallMedium{{Drive: imprint.BootCD}}},
		"a device twice":          {BootOrder: []imprint.BootDevice{imprint.BootCD, imprint.BootCD}},
		"an unknown device":       {BootOrder: []imprint.BootDevice{"usb"}},
		"an unknown format":       {Disks: []imprint.InstallDisk{{Path: "/x", Format: "vmdk"}}},
		"an initrd alone":         {Initrd: "/x"},
		"a line alone":            {Append: "auto"},
		"a kernel and an order":   {Kernel: "/x", BootOrder: []imprint.BootDevice{imprint.BootCD}},
		"two lines":               {Kernel: "/x", Append: "a\nb"},
		"a line that is too long": {Kernel: "/x", Append: strings.Repeat("x", imprint.MaxKernelLineLen+1)},
		"too many interfaces":     {NICs: make([]imprint.InstallNIC, imprint.MaxInstallNICs+1)},
	} {
		if err := n.Check(); imprint.KindOf(err) != imprint.Invalid {
			t.Errorf("%s: got %v", what, err)
		}
	}
}

// Plain HTTP is plain HTTP however its scheme is written: what comes over it has a sum
// or a signature, and no password goes over it.
func TestPlainHTTPInCapitals(t *testing.T) {
	sum := "sha256:" + strings.Repeat("0", 64)
	for _, source := range []string{"http://images.example/a.raw", "HTTP://images.example/a.raw", "Http://images.example/a.raw"} {
		if err := (&imprint.Image{Source: source}).Check(); imprint.KindOf(err) != imprint.Invalid {
			t.Errorf("%s: an image without a sum: %v", source, err)
		}
		if err := (&imprint.Package{Source: source}).Check("package"); imprint.KindOf(err) != imprint.Invalid {
			t.Errorf("%s: a package without a sum: %v", source, err)
		}
		if err := (&imprint.Package{Source: source, Sum: sum, Credentials: "login"}).Check("package"); imprint.KindOf(err) != imprint.Invalid {
			t.Errorf("%s: a password: %v", source, err)
		}
		if err := (&imprint.Image{Source: source, Sum: sum}).Check(); err != nil {
			t.Errorf("%s: with a sum: %v", source, err)
		}
	}
}
