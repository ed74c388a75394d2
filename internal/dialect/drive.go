package dialect

import (
	"slices"
	"strings"

	"imprint"
)

// Form is how a guest gets at the files on a medium.
type Form string

// The forms.
const (
	Volume   Form = "volume"   // a file system that is found by its label
	Initrd   Form = "initrd"   // unpacked into the root of an initial RAM disk
	Firmware Form = "firmware" // strings of the firmware
	FWCfg    Form = "fw-cfg"   // files of QEMU's fw_cfg, whose names are short
	Stub     Form = "stub"     // credentials that systemd-stub hands to systemd in an initial RAM disk
	System   Form = "system"   // what the firmware says of the system as a whole
)

// The files of the forms [Firmware] and [FWCfg] are named as QEMU's are below "opt/":
// whose they are, and which.
const (
	SystemdNames = "io.systemd.credentials/" // systemd's credentials
	ImprintNames = "org.imprint/"            // imprint-agent's
)

// The files of the form [System], named as dmidecode names them.
const (
	SystemUUID   = "system-uuid"
	SystemSerial = "system-serial-number"
)

// Drive is a dialect as it is put on a medium: whole, before the machine starts.
type Drive struct {
	Name    string
	Summary string
	// Label is what the guest's software looks for: of a volume that has names in
	// two cases, this one.
	Label string
	// Readers are who in the guest can read what its software took from the medium,
	// besides those who can read the medium itself; 0 is nobody.
	Readers imprint.Readers
	// Payload says that the bootstrap document is on it, with a one-time token where
	// the readers allow one.
	Payload bool
	// UserData says that the user's own data is on it, and is for stock software.
	UserData bool
	// Password says that it can set a password of the administrator.
	Password bool
	// Forms say what it can be put on.
	Forms  []Form
	users  userSupport
	render func(values, *imprint.Instance, Facts, DriveInput) error
}

// userSupport says what a dialect does about users.
type userSupport uint8

const (
	noUsers      userSupport = iota
	everyUser                // as they are declared
	inUserData               // if vendor data is merged into the user data
	systemdUsers             // by systemd-sysusers
	windowsUsers             // those who get a password
)

// DriveInput is what a rendering needs besides the instance and its tenant.
type DriveInput struct {
	Readers imprint.Readers // of the medium and the dialect together
	Closed  bool            // the boot is over; what served it alone stays away
	Seed    []byte          // for the guest's random numbers, as in [OpenStack]
	Payload []byte          // encoded; for a [Drive] that has one
	Form    Form            // of the medium
	// MergeVendor puts vendor data, and with it the users, into the user data.
	MergeVendor bool
	// AdminPassword names the public parameter that is the password of Windows'
	// administrator; "" sets none.
	AdminPassword string
	// UserPasswords names, by user, the public parameters that are the passwords of
	// Windows' local accounts. A user without one gets no account: it would have an
	// empty password.
	UserPasswords map[string]string
}

// Drives returns the dialects that there are on media.
func Drives() []Drive {
	// cloud-init and cloudbase-init show what they read to all users of the guest.
	const all = imprint.GuestProcesses
	return []Drive{
		{
			Name: "openstack", Summary: "config drive of Nova's, for cloud-init, cloudbase-init and others",
			Label: "config-2", Readers: all, UserData: true, Forms: []Form{Volume}, users: everyUser, render: configDrive,
		}, {
			Name: "nocloud", Summary: "seed for cloud-init's NoCloud",
			Label: "cidata", Readers: all, UserData: true, Forms: []Form{Volume}, users: everyUser, render: noCloudDrive,
		}, {
			Name: "nocloud-net", Summary: "the line that sends cloud-init's NoCloud to the host's metadata",
			Readers: all, Forms: []Form{System}, users: everyUser, render: noCloudSeed,
		}, {
			Name: "ec2", Summary: "the part of a config drive that is in EC2's terms",
			Label: "config-2", Readers: all, UserData: true, Forms: []Form{Volume}, users: inUserData, render: ec2Drive,
		}, {
			Name: "ganeti", Summary: "the parameters of a Ganeti operating system",
			Label: "ganeti", Readers: all, Forms: []Form{Volume}, render: ganetiDrive,
		}, {
			Name: "unattend", Summary: "answer file for Windows Setup and sysprep",
			Label: "unattend", Readers: all, Password: true, Forms: []Form{Volume}, users: windowsUsers, render: unattendDrive,
		}, {
			Name: "sysprep", Summary: "answer file for Mini-Setup of Windows XP and Server 2003",
			Label: "sysprep", Readers: all, Password: true, Forms: []Form{Volume}, render: sysprepDrive,
		}, {
			Name: "altcloud", Summary: "user data for cloud-init's AltCloud, on a floppy or a CD",
			Label: "CDROM", Readers: all, UserData: true, Forms: []Form{Volume}, users: inUserData, render: altCloudDrive,
		}, {
			Name: "credentials", Summary: "systemd credentials, and the payload for imprint-agent",
			Payload: true, Forms: []Form{Initrd, Firmware, FWCfg, Stub}, users: systemdUsers, render: credentialsDrive,
		}, {
			Name: "native", Summary: "the payload for imprint-agent",
			Label: "IMPRINT", Payload: true, Forms: []Form{Volume, Initrd, Firmware, FWCfg}, render: nativeDrive,
		},
	}
}

// DriveOf returns the dialect called name. It fails with kind [imprint.Invalid].
func DriveOf(name string) (Drive, error) {
	drives := Drives()
	i := slices.IndexFunc(drives, func(d Drive) bool { return d.Name == name })
	if i < 0 {
		var names []string
		for _, d := range drives {
			names = append(names, d.Name)
		}
		return Drive{}, imprint.Errorf(imprint.Invalid, "find", "dialect "+name, "on media there are %s", strings.Join(names, ", "))
	}
	return drives[i], nil
}

// Fits reports whether d can be put on a medium of a form.
func (d Drive) Fits(f Form) bool { return slices.Contains(d.Forms, f) }

// Render returns the files, by path, and what the audience rule kept away from
// them: the names of parameters, and "user data" and "one-time token". It fails with kind
// [imprint.Invalid] for an instance that the dialect cannot describe.
func (d Drive) Render(inst *imprint.Instance, facts Facts, in DriveInput) (*imprint.View, []string, error) {
	v := values{in.Readers, map[string]imprint.Value{}}
	if in.AdminPassword != "" && !d.Password {
		return nil, nil, imprint.Errorf(imprint.Invalid, "render", d.Name, "it has no place for an administrator's password").
			WithHint("unattend and sysprep have one")
	}
	if len(in.UserPasswords) > 0 && d.users != windowsUsers {
		return nil, nil, imprint.Errorf(imprint.Invalid, "render", d.Name, "it has no place for the passwords of Windows' users").
			WithHint("unattend has")
	}
	if in.MergeVendor && !d.UserData {
		return nil, nil, imprint.Errorf(imprint.Invalid, "render", d.Name, "it has no user data, into which vendor data could be put").
			WithHint("openstack, nocloud, ec2 and altcloud have")
	}
	if in.MergeVendor && !in.Closed { // then there is no user data to merge it into
		inst = mergeVendor(withUsers(inst, inst.Spec.VendorData))
	}
	if err := d.render(v, inst, facts, in); err != nil {
		return nil, nil, err
	}
	var omitted []string
	for name, value := range v.m {
		if !imprint.MayTravel(value.At(in.Closed), in.Readers) {
			delete(v.m, name)
		}
	}
	if in.Closed && inst.Spec.UserData != "" && d.UserData {
		omitted = append(omitted, "user data")
	}
	for _, p := range inst.Spec.Params {
		if !imprint.MayTravel(p.Visibility, in.Readers) {
			omitted = append(omitted, p.Name)
		}
	}
	return v.view(inst), omitted, nil
}

// take puts a View's values whose names begin with prefix, without it.
func (v values) take(view *imprint.View, prefix string) {
	for name, value := range view.Values {
		if path, ok := strings.CutPrefix(name, prefix); ok {
			v.putValue(path, value)
		}
	}
}

func configDrive(v values, inst *imprint.Instance, facts Facts, in DriveInput) error {
	v.take(OpenStack(inst, facts, in.Seed), "")
	return ec2Drive(v, inst, facts, in)
}

func noCloudDrive(v values, inst *imprint.Instance, _ Facts, in DriveInput) error {
	v.take(NoCloud(inst), "nocloud/")
	if in.Closed { // an empty file, or the drive is not taken for one
		v.m["user-data"] = public("")
	}
	return nil
}

// seedLine is what cloud-init's NoCloud reads in the serial number. Its "-net" is for
// versions before 23.2, which otherwise look for files only.
const seedLine = "ds=nocloud-net;s=http://169.254.169.254/nocloud/"

// noCloudSeed renders where cloud-init finds what it would read from a drive.
func noCloudSeed(v values, inst *imprint.Instance, _ Facts, _ DriveInput) error {
	if !slices.Contains(inst.Spec.Channels, imprint.LinkLocal) {
		var has []string
		for _, c := range inst.Spec.Channels {
			has = append(has, string(c))
		}
		return imprint.Errorf(imprint.Invalid, "render seed line for", inst.Ref(), "of its channels (%s) none serves NoCloud at 169.254.169.254", strings.Join(has, ", ")).
			WithHint("give it the channel nic, or put the dialect nocloud on a medium")
	}
	v.put(SystemUUID, imprint.Public, string(inst.ID))
	v.put(SystemSerial, imprint.Public, seedLine)
	return nil
}

// ec2Drive renders what Nova puts below "ec2/" on a config drive: one document
// where the metadata service has a tree.
func ec2Drive(v values, inst *imprint.Instance, facts Facts, _ DriveInput) error {
	meta := map[string]any{}
	for _, leaf := range ec2Leaves(inst, facts) {
		path := strings.Split(leaf.name, "/")
		if path[0] == "network" {
			continue // of the interface to the host, which the document does not know
		}
		at := meta
		for _, name := range path[:len(path)-1] {
			below, ok := at[name].(map[string]any)
			if !ok {
				below = map[string]any{}
				at[name] = below
			}
			at = below
		}
		at[path[len(path)-1]] = string(leaf.value.Data)
	}
	document := public(compact(meta))
	for _, version := range []string{ec2Interfaces, Latest} {
		v.putValue("ec2/"+version+"/meta-data.json", document)
		if inst.Spec.UserData != "" {
			v.putValue("ec2/"+version+"/user-data", userData(&inst.Spec))
		}
	}
	return nil
}

func ganetiDrive(v values, inst *imprint.Instance, facts Facts, _ DriveInput) error {
	v.take(Ganeti(inst, facts), "")
	return nil
}

// nativeDrive puts the payload where imprint-agent looks for it.
func nativeDrive(v values, _ *imprint.Instance, _ Facts, in DriveInput) error {
	name := "payload.json"
	switch in.Form {
	case Initrd:
		name = "etc/imprint/payload.json"
	case Firmware, FWCfg:
		name = ImprintNames + "payload"
	}
	v.put(name, imprint.Public, string(in.Payload))
	return nil
}
