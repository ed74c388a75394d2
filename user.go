package imprint

import "slices"

// User is an account on the machine, as an operator declares it in the terms of
// passwd(5), group(5) and cloud-init. Which software makes it, and what of it that
// cannot say, is a dialect's business.
type User struct {
	Name string `json:"name"`
	// Gecos is the full name.
	Gecos string `json:"gecos,omitempty"`
	// UID is the number of the account; 0 has the machine choose.
	UID int `json:"uid,omitempty"`
	// Groups are those that it belongs to besides the one of its name.
	Groups []string `json:"groups,omitempty"`
	// Shell is the path of the login shell; "" is the machine's own choice.
	Shell string `json:"shell,omitempty"`
	// Admin lets it act as root without a password, or makes it one of Windows' Administrators.
	Admin bool `json:"admin,omitempty"`
	// SSHKeys may log in under this name.
	SSHKeys []string `json:"sshKeys,omitempty"`
	// HashedPassword names the parameter whose value is the hash of the password, as
	// crypt(3) writes it. "" is no password: nobody logs in with one. The audience
	// rule treats the hash as any value of that parameter's visibility.
	HashedPassword string `json:"hashedPassword,omitempty"`
}

// cloneUsers returns a copy that shares no memory with users.
func cloneUsers(users []User) []User {
	users = slices.Clone(users)
	for i := range users {
		u := &users[i]
		u.Groups, u.SSHKeys = slices.Clone(u.Groups), slices.Clone(u.SSHKeys)
	}
	return users
}
