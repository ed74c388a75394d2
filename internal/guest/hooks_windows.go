package guest

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// refuseHook returns why the file at path must not be run, or "". Who may write
// here is decided by the access list of the configuration directory.
func refuseHook(path string) string {
	info, err := os.Lstat(path)
	switch {
	case err != nil:
		return err.Error()
	case !info.Mode().IsRegular():
		return "it is not a regular file"
	}
	switch strings.ToLower(filepath.Ext(path)) {
	case ".exe", ".cmd", ".bat", ".ps1":
		return ""
	}
	return "it is neither .exe, .cmd, .bat nor .ps1"
}

func hookCommand(ctx context.Context, path string) *exec.Cmd {
	if strings.EqualFold(filepath.Ext(path), ".ps1") {
		return exec.CommandContext(ctx, "powershell.exe", "-NoProfile", "-NonInteractive", "-ExecutionPolicy", "Bypass", "-File", path)
	}
	return exec.CommandContext(ctx, path)
}
