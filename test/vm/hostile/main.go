// Command hostile is the agent of a helper VM that somebody took over: PID 1 itself
// does what the name of the task says. Tasks that begin with "script" do it in the
// cage of imprint-agent instead.
package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"imprint/internal/confine"
	"imprint/internal/inside"
	"imprint/internal/job"
)

func main() {
	confine.Main()
	inside.Main(perform)
}

func perform(ctx context.Context, e *inside.Env, t *job.Task, o *job.Outcome) error {
	name, script, _ := strings.Cut(t.Name, ": ")
	switch name {
	case "script", "short script":
		limit := 5 * time.Minute
		if name == "short script" {
			limit = 2 * time.Second
		}
		return run(ctx, e, script, confine.Limits{Time: limit, Memory: 64 << 20, Processes: 20, Output: 1 << 20, FileSize: 1 << 20})
	case "fine":
		e.Progress(1, 2, "things")
		e.Logf("%s", script)
	case "panic":
		os.WriteFile("/proc/sys/kernel/sysrq", []byte("1"), 0)
		os.WriteFile("/proc/sysrq-trigger", []byte("c"), 0)
	case "power off":
		unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	case "hang":
	case "flood console":
		line := append(bytes.Repeat([]byte("all work and no play "), 100), '\n')
		for {
			os.Stderr.Write(line)
		}
	case "flood log":
		for range 25_000 {
			e.Logf("%s", strings.Repeat("x", 300))
		}
		e.Progress(1, 1, "flood")
	case "other nonce":
		b, _ := json.Marshal(job.Message{Result: &job.Result{Nonce: "guessed", Tasks: []job.Outcome{{Name: t.Name}}}})
		port(append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...))
	case "no frame":
		port([]byte("\xff\xff\xff\xffresult"))
	case "stream":
		s, err := e.Stream("data")
		if err != nil {
			return err
		}
		var in bytes.Buffer
		if _, err := in.ReadFrom(s); err != nil {
			return err
		}
		fmt.Fprintf(s, "%d bytes: %s", in.Len(), in.Bytes()[:min(in.Len(), 20)])
		if script == "cut" {
			return nil
		}
		return s.Close()
	case "secret":
		s, err := e.Secret("password")
		if err != nil {
			return err
		}
		e.Logf("it is %s", s.Reveal())
		fmt.Fprintf(os.Stderr, "it is %s\n", s.Reveal())
		return fmt.Errorf("cannot use %s", s.Reveal())
	case "mount": // without the options by which the agent keeps a filesystem from panicking the kernel
		disk, err := e.Disk(0)
		if err != nil {
			return err
		}
		return unix.Mount(disk, "/mnt", "ext4", 0, "")
	case "write":
		return write(e)
	}
	if name != "fine" {
		for { // with a timer, since Go ends a program of which nothing can go on
			time.Sleep(time.Hour)
		}
	}
	return nil
}

// port writes to the port whose descriptor is one of this process's.
func port(b []byte) {
	links, _ := filepath.Glob("/proc/self/fd/*")
	for _, l := range links {
		if target, _ := os.Readlink(l); strings.HasPrefix(target, "/dev/vport") {
			fd, _ := strconv.Atoi(filepath.Base(l))
			unix.Write(fd, b)
		}
	}
}

// run runs a shell script as an OS definition's would be run.
func run(ctx context.Context, e *inside.Env, script string, l confine.Limits) error {
	if err := os.MkdirAll("/root/bin", 0o755); err != nil {
		return err
	}
	for _, dir := range []string{"dev", "proc", "sys", "tmp", "run", "sbin"} {
		os.Mkdir("/root/"+dir, 0o755)
	}
	program, err := os.ReadFile("/usr/bin/busybox")
	if err != nil {
		return err
	}
	if err := os.WriteFile("/root/bin/busybox", program, 0o755); err != nil {
		return err
	}
	for _, name := range []string{"sh", "dd", "mknod", "sleep", "yes", "cat", "poweroff", "reboot", "ls", "insmod", "mount", "tr", "head", "tail"} {
		os.Symlink("busybox", "/root/bin/"+name)
	}
	c := confine.Command{
		Path: "/bin/sh", Args: []string{"-c", script}, Env: []string{"PATH=/bin"}, Root: "/root", Stdout: e.Log(), Stderr: e.Log(), Limits: l,
	}
	return c.Run(ctx)
}

// write fills the first disk with what the second begins with, and gives the rest of
// the first back.
func write(e *inside.Env) error {
	to, err := e.Disk(0)
	if err != nil {
		return err
	}
	from, err := e.Disk(1)
	if err != nil {
		return err
	}
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	if err := os.WriteFile(from, []byte("no"), 0); err == nil {
		return fmt.Errorf("the read-only disk was written")
	}
	f, err := os.OpenFile(to, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write(b); err != nil {
		return err
	}
	size, err := f.Seek(0, 2)
	if err != nil {
		return err
	}
	e.Logf("%d bytes of package, %d of disk", len(b), size)
	return unix.IoctlSetPointerInt(int(f.Fd()), unix.BLKFLSBUF, 0)
}
