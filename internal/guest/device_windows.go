package guest

import (
	"errors"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/windows"

	"imprint"
)

// device is an open serial or virtio-serial port. It reads and writes with
// overlapped I/O: on an ordinary handle a pending read would hold up every write,
// and nothing would interrupt it.
type device struct {
	handle windows.Handle
	quit   windows.Handle // event: Close was called
	in     transfer
	out    transfer
}

// transfer is one direction of a device.
type transfer struct {
	mu    sync.Mutex // held while a transfer is under way; guards the rest
	state windows.Overlapped
	ended bool // the handles are closed
}

// openDevice opens a port, which nobody else can then open.
func openDevice(path string) (_ *device, err error) {
	name, err := windows.UTF16PtrFromString(path)
	if err != nil {
		return nil, imprint.Errorf(imprint.Invalid, "open", path, "%w", err)
	}
	d := &device{}
	d.handle, err = windows.CreateFile(name, windows.GENERIC_READ|windows.GENERIC_WRITE, 0, nil,
		windows.OPEN_EXISTING, windows.FILE_FLAG_OVERLAPPED, 0)
	switch err {
	case nil:
	case windows.ERROR_FILE_NOT_FOUND, windows.ERROR_PATH_NOT_FOUND:
		return nil, imprint.Errorf(imprint.NotFound, "open", path, "the machine has no such port")
	case windows.ERROR_ACCESS_DENIED, windows.ERROR_SHARING_VIOLATION:
		return nil, imprint.Errorf(imprint.Unavailable, "open", path, "another program has it open, or this one is not run as administrator")
	default:
		return nil, imprint.Errorf(imprint.Unavailable, "open", path, "%w", err)
	}
	for _, event := range []*windows.Handle{&d.quit, &d.in.state.HEvent, &d.out.state.HEvent} {
		if *event, err = windows.CreateEvent(nil, 1, 0, nil); err != nil {
			d.Close()
			return nil, imprint.Errorf(imprint.Internal, "open", path, "%w", err)
		}
	}
	return d, nil
}

// Read returns [io.EOF] when there is nobody at the other end.
func (d *device) Read(b []byte) (int, error) {
	n, err := d.move(&d.in, func() error { return windows.ReadFile(d.handle, b, nil, &d.in.state) })
	if n == 0 && err == nil && len(b) > 0 {
		err = io.EOF
	}
	return n, err
}

// Write writes all of b or fails.
func (d *device) Write(b []byte) (int, error) {
	n, err := d.move(&d.out, func() error { return windows.WriteFile(d.handle, b, nil, &d.out.state) })
	if n < len(b) && err == nil {
		err = io.ErrShortWrite
	}
	return n, err
}

// move starts a transfer and waits for its end, or for Close.
func (d *device) move(t *transfer, start func() error) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ended {
		return 0, os.ErrClosed
	}
	if err := start(); err != nil && err != windows.ERROR_IO_PENDING {
		return 0, err
	}
	closed := false
	first, err := windows.WaitForMultipleObjects([]windows.Handle{t.state.HEvent, d.quit}, false, windows.INFINITE)
	if err != nil || first != windows.WAIT_OBJECT_0 {
		closed = true
		windows.CancelIoEx(d.handle, &t.state) // fails if it ended meanwhile, which is as good
	}
	// The system writes to b and t.state until this returns.
	var n uint32
	err = windows.GetOverlappedResult(d.handle, &t.state, &n, true)
	if closed && err != nil {
		err = os.ErrClosed
	}
	return int(n), err
}

// Close ends the transfers that are under way and closes the port.
func (d *device) Close() error {
	windows.SetEvent(d.quit)
	d.in.mu.Lock()
	defer d.in.mu.Unlock()
	d.out.mu.Lock()
	defer d.out.mu.Unlock()
	if d.in.ended {
		return os.ErrClosed
	}
	d.in.ended, d.out.ended = true, true
	var errs error
	for _, h := range []windows.Handle{d.handle, d.quit, d.in.state.HEvent, d.out.state.HEvent} {
		if h != 0 {
			errs = errors.Join(errs, windows.CloseHandle(h))
		}
	}
	return errs
}
