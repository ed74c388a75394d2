// Package script runs one script of an OS definition in a cage, on the host or in a
// helper VM: with a clean environment, with secrets in files that are nowhere but in
// memory, and with ends of a pipe and a socket to the script's other half.
package script

import (
	"context"
	"io"
	"os"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"imprint"
	"imprint/internal/confine"
)

// The variables by which a script finds its other half.
const (
	// ReadVar and WriteVar are paths: what the other half wrote is read at the one, and
	// what is written to the other it reads. The end of file tells that it has ended.
	ReadVar  = "IMPRINT_READ"
	WriteVar = "IMPRINT_WRITE"
	// SocketVar is the number of a descriptor: a stream socket to the other half.
	SocketVar = "IMPRINT_SOCKET_FD"
)

// firstFD is the descriptor of the first of [confine.Command.Files].
const firstFD = 3

// Script is a script to run. It is as its Command says, with this in addition.
type Script struct {
	confine.Command
	// Secret are variables whose values are secret: in the environment, as scripts written
	// for Ganeti want it, where all processes of the script's user can read them.
	Secret map[string]imprint.Secret
	// SecretFiles are variables that get the path of a file with the value: one in memory
	// that goes with the script.
	SecretFiles map[string]imprint.Secret
	// Pipe and Socket lead to the other half; nil is none. That this script has closed
	// its end, or has ended, closes them for writing. What reads from them ends when the
	// caller closes them, at the latest.
	Pipe, Socket Stream
}

// Stream is a byte stream in both directions, each of which ends by itself.
type Stream interface {
	io.ReadWriter
	CloseWrite() error
}

// Run runs the script to its end. It fails as [confine.Command.Run] does.
func (s *Script) Run(ctx context.Context) (err error) {
	c := s.Command
	r := &running{}
	defer r.close()
	c.Env = append([]string{}, c.Env...)
	for name, value := range s.Secret {
		c.Env = append(c.Env, name+"="+string(value.Reveal()))
	}
	give := func(f *os.File) (fd string, err error) { // the descriptor that the script has
		r.theirs = append(r.theirs, f)
		c.Files = append(c.Files, f)
		// Or it could not be opened by its name in /dev/fd by another than root.
		return strconv.Itoa(firstFD + len(c.Files) - 1), f.Chown(int(c.UID), int(c.GID))
	}
	for name, value := range s.SecretFiles {
		f, err := memoryFile(value)
		if err != nil {
			return imprint.Errorf(imprint.Internal, "run", c.Path, "keep %s in memory: %w", name, err)
		}
		fd, err := give(f)
		if err != nil {
			return imprint.Errorf(imprint.Internal, "run", c.Path, "hand %s over: %w", name, err)
		}
		c.Env = append(c.Env, name+"=/dev/fd/"+fd)
	}
	if s.Pipe != nil {
		if err := r.pipe(s.Pipe, func(name string, f *os.File) error {
			fd, err := give(f)
			c.Env = append(c.Env, name+"=/dev/fd/"+fd)
			return err
		}); err != nil {
			return imprint.Errorf(imprint.Internal, "run", c.Path, "connect its pipe: %w", err)
		}
	}
	if s.Socket != nil {
		if err := r.socket(s.Socket, func(f *os.File) error {
			fd, err := give(f)
			c.Env = append(c.Env, SocketVar+"="+fd)
			return err
		}); err != nil {
			return imprint.Errorf(imprint.Internal, "run", c.Path, "connect its socket: %w", err)
		}
	}
	c.Started = r.handedOver
	err = c.Run(ctx)
	r.handedOver() // also if it was not started
	r.pumps.Wait() // what it wrote last arrives
	return err
}

// running is what a script has while it runs.
type running struct {
	theirs []*os.File // ends that the script has
	ours   []*os.File // ends that are pumped
	pumps  sync.WaitGroup
}

// handedOver closes what is the script's: an end that somebody else has too would
// never be seen to end.
func (r *running) handedOver() {
	for _, f := range r.theirs {
		f.Close()
	}
}

// pipe makes the two pipes of a script whose other half is at the end of other.
func (r *running) pipe(other Stream, give func(name string, f *os.File) error) error {
	read, feed, err := os.Pipe()
	if err != nil {
		return err
	}
	r.ours = append(r.ours, feed)
	if err := give(ReadVar, read); err != nil {
		return err
	}
	taken, write, err := os.Pipe()
	if err != nil {
		return err
	}
	r.ours = append(r.ours, taken)
	if err := give(WriteVar, write); err != nil {
		return err
	}
	r.pump(feed, taken, other, func() { feed.Close() })
	return nil
}

// socket makes a socket likewise.
func (r *running) socket(other Stream, give func(f *os.File) error) error {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	unix.SetNonblock(fds[0], true) // so that closing it wakes who reads
	ours, theirs := os.NewFile(uintptr(fds[0]), "socket"), os.NewFile(uintptr(fds[1]), "socket")
	r.ours = append(r.ours, ours)
	if err := give(theirs); err != nil {
		return err
	}
	r.pump(ours, ours, other, func() { unix.Shutdown(int(ours.Fd()), unix.SHUT_WR) })
	return nil
}

// pump moves bytes between the script, which reads from feed and writes to taken, and
// its other half, until each has ended; ended tells the script that the other has.
func (r *running) pump(feed io.Writer, taken io.Reader, other Stream, ended func()) {
	go func() { // ends when the other half does, at the latest when its caller closes it
		io.Copy(feed, other)
		ended()
	}()
	r.pumps.Go(func() {
		if _, err := io.Copy(other, taken); err != nil {
			io.Copy(io.Discard, taken) // the other half has ended: the script need not block
		}
		other.CloseWrite()
	})
}

func (r *running) close() {
	r.handedOver()
	for _, f := range r.ours {
		f.Close()
	}
}

// memoryFile returns a file with the value that has no name and goes with its last
// descriptor. It cannot be changed.
func memoryFile(value imprint.Secret) (*os.File, error) {
	fd, err := unix.MemfdCreate("value", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), "value")
	if _, err := f.Write(value.Reveal()); err != nil {
		f.Close()
		return nil, err
	}
	const seals = unix.F_SEAL_WRITE | unix.F_SEAL_GROW | unix.F_SEAL_SHRINK | unix.F_SEAL_SEAL
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals); err != nil {
		f.Close()
		return nil, os.NewSyscallError("fcntl", err)
	}
	return f, nil
}
