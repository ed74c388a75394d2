package dialect

import (
	"encoding/base64"
	"fmt"
	"slices"
	"strings"

	"imprint"
)

// cloudUser is an entry of cloud-init's "users". The hash is hashed_passwd and never
// passwd, which cloudbase-init takes for the password itself.
type cloudUser struct {
	Name   string   `json:"name"`
	Gecos  string   `json:"gecos,omitempty"`
	UID    int      `json:"uid,omitempty"`
	Groups []string `json:"groups,omitempty"`
	Shell  string   `json:"shell,omitempty"`
	Sudo   string   `json:"sudo,omitempty"`
	Keys   []string `json:"ssh_authorized_keys,omitempty"`
	Hash   string   `json:"hashed_passwd,omitempty"`
	Lock   bool     `json:"lock_passwd"`
}

// sudoRule is the line of sudoers(5) behind the name of a user who may do everything.
const sudoRule = "ALL=(ALL) NOPASSWD:ALL"

// cloudUsers returns a cloud-config that makes the users, in YAML's JSON form; "" if
// there are none. A list of users replaces the one in the image, so the image's own
// user, who gets the instance's keys, is in it as "default". Whatever carries it, every
// process of the guest can read it: cloud-init keeps it and logs it.
func cloudUsers(spec *imprint.Spec) string {
	if len(spec.Users) == 0 {
		return ""
	}
	list := []any{"default"}
	for _, u := range spec.Users {
		hash := hashOf(spec, &u, NetworkReaders).Value
		out := cloudUser{u.Name, u.Gecos, u.UID, u.Groups, u.Shell, "", u.SSHKeys, hash, hash == ""}
		if u.Admin {
			out.Sudo = sudoRule
		}
		list = append(list, out)
	}
	return "#cloud-config\n" + compact(map[string]any{"users": list}) + "\n"
}

// hashOf returns the parameter with the hash of u's password, if readers may read it;
// without a value if not, or there is none.
func hashOf(spec *imprint.Spec, u *imprint.User, readers imprint.Readers) imprint.Param {
	for _, p := range spec.Params { // the value is there of none but a public one
		if p.Name == u.HashedPassword && imprint.MayTravel(p.Visibility, readers) {
			return p
		}
	}
	return imprint.Param{}
}

// withUsers returns inst with what makes its users as the first part of its vendor
// data, before given, the operator's own. Of a setting in both cloud-init takes the
// operator's, and before either the tenant's, in the user data.
func withUsers(inst *imprint.Instance, given string) *imprint.Instance {
	users := cloudUsers(&inst.Spec)
	if users == "" {
		return inst
	}
	data := users
	if parts := vendorParts(given); len(parts) > 0 {
		data = multipart(append([]string{users}, parts...))
	}
	with := *inst
	with.Spec.VendorData, with.Spec.Users = data, nil
	return &with
}

// sysusers returns lines of sysusers.d(5) that make the users, and lines of
// tmpfiles.d(5) that make their homes, with their keys, and let them act as root. What
// is there already stays as it is.
func sysusers(users []imprint.User) (accounts, files string) {
	var a, f strings.Builder
	for _, u := range users {
		uid, shell := "-", "/bin/sh"
		if u.UID != 0 {
			uid = fmt.Sprint(u.UID)
		}
		if u.Shell != "" {
			shell = u.Shell
		}
		fmt.Fprintf(&a, "u %s %s %s /home/%[1]s %[4]s\n", u.Name, uid, sysusersText(u.Gecos), shell)
		for _, g := range u.Groups {
			fmt.Fprintf(&a, "m %s %s\n", u.Name, g)
		}
		fmt.Fprintf(&f, "d /home/%s :0700 :%[1]s :%[1]s -\n", u.Name)
		if len(u.SSHKeys) > 0 {
			fmt.Fprintf(&f, "d /home/%s/.ssh :0700 :%[1]s :%[1]s -\n", u.Name)
			fmt.Fprintf(&f, "f~ /home/%s/.ssh/authorized_keys :0600 :%[1]s :%[1]s - %s\n", u.Name, base64.StdEncoding.EncodeToString([]byte(strings.Join(u.SSHKeys, "\n")+"\n")))
		}
		if u.Admin {
			fmt.Fprintf(&f, "f~ /etc/sudoers.d/90-imprint-%s 0440 root root - %s\n", u.Name, base64.StdEncoding.EncodeToString([]byte(u.Name+" "+sudoRule+"\n")))
		}
	}
	return a.String(), f.String()
}

// sysusersText is text as one word of sysusers.d(5), where a per cent sign begins a specifier.
func sysusersText(text string) string {
	if text == "" {
		return "-"
	}
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "%", "%%").Replace(text) + `"`
}

// Unsupported returns what of the instance's users d has no place for, in words for
// the operator; nil if it makes them as they are declared. What the audience rule keeps
// away is not among it.
func (d Drive) Unsupported(inst *imprint.Instance, in DriveInput) []string {
	if len(inst.Spec.Users) == 0 || d.users == everyUser || d.users == inUserData && in.MergeVendor && !in.Closed {
		return nil
	}
	var missing []string
	for i := range inst.Spec.Users {
		u := &inst.Spec.Users[i]
		switch {
		case d.users == systemdUsers:
			if u.HashedPassword != "" && !systemdTakesHash(in.Form) && hashOf(&inst.Spec, u, in.Readers).Value != "" {
				missing = append(missing, "the password of "+u.Name)
			}
		case d.users == windowsUsers && in.UserPasswords[u.Name] != "":
			for what, has := range map[string]bool{
				"the SSH keys": len(u.SSHKeys) > 0, "the hashed password": u.HashedPassword != "", "the shell": u.Shell != "", "the UID": u.UID != 0,
			} {
				if has {
					missing = append(missing, what+" of "+u.Name)
				}
			}
		default:
			missing = append(missing, "user "+u.Name)
		}
	}
	slices.Sort(missing)
	return missing
}
