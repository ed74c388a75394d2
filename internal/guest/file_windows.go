package guest

import (
	"os"

	"golang.org/x/sys/windows"

	"imprint"
)

// makePrivateDir creates dir and its parents; dir itself, and what will be in
// it, is for Administrators and SYSTEM only.
func makePrivateDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return imprint.Errorf(imprint.Internal, "create", dir, "%w", err)
	}
	sd, err := windows.SecurityDescriptorFromString("D:PAI(A;OICI;FA;;;BA)(A;OICI;FA;;;SY)")
	if err != nil {
		return imprint.Errorf(imprint.Internal, "protect", dir, "%w", err)
	}
	dacl, _, err := sd.DACL()
	if err != nil {
		return imprint.Errorf(imprint.Internal, "protect", dir, "%w", err)
	}
	err = windows.SetNamedSecurityInfo(dir, windows.SE_FILE_OBJECT,
		windows.DACL_SECURITY_INFORMATION|windows.PROTECTED_DACL_SECURITY_INFORMATION, nil, nil, dacl, nil)
	if err != nil {
		return imprint.Errorf(imprint.Internal, "protect", dir, "%w", err)
	}
	return nil
}

// makeConfigDir protects the whole directory: what is in it inherits its list.
func makeConfigDir(dir string) error { return makePrivateDir(dir) }

// takeLock holds path for this process until release is called. It fails with
// kind [imprint.Conflict] while another process has it.
func takeLock(path string) (release func(), err error) {
	name, err := windows.UTF16PtrFromString(path)
	if err != nil {
		return nil, imprint.Errorf(imprint.Invalid, "lock", path, "%w", err)
	}
	// No sharing: the open handle is the lock.
	h, err := windows.CreateFile(name, windows.GENERIC_WRITE, 0, nil, windows.OPEN_ALWAYS, windows.FILE_ATTRIBUTE_NORMAL, 0)
	if err != nil {
		return nil, imprint.Errorf(imprint.Conflict, "lock", path, "another imprint-agent is at work: %w", err).
			WithHint("wait for it, or stop the service first")
	}
	return func() { windows.CloseHandle(h) }, nil
}
