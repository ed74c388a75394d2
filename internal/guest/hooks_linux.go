package guest

import (
	"context"
	"os"
	"os/exec"
	"syscall"
)

// refuseHook returns why the file at path must not be run, or "".
func refuseHook(path string) string {
	info, err := os.Lstat(path)
	switch {
	case err != nil:
		return err.Error()
	case !info.Mode().IsRegular():
		return "it is not a regular file"
	case info.Mode().Perm()&0o111 == 0:
		return "it is not executable"
	}
	return trustedProgram(info, uint32(os.Geteuid()))
}

// hookCommand runs path in a process group of its own, which ends as a whole
// when ctx does.
func hookCommand(ctx context.Context, path string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, path)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	return cmd
}
