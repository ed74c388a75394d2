package guest

import (
	"context"
	"os"
	"unsafe"

	"golang.org/x/sys/windows"

	"imprint"
)

// serialSource is the second serial port.
type serialSource struct{ path string }

func newSerialSource(Layout) serialSource { return serialSource{`\\.\COM2`} }

func (s serialSource) String() string { return "serial port " + s.path }

func (s serialSource) Try(ctx context.Context) (*finding, error) {
	conn, err := openDevice(s.path, s.String())
	if err != nil {
		return nil, err
	}
	if err := setUpSerial(conn); err != nil {
		conn.Close()
		return nil, imprint.Errorf(imprint.Unavailable, "set up", s.path, "%w", err)
	}
	return greet(ctx, s.String(), conn)
}

// openDevice opens a device for overlapped reads and writes, which deadlines and
// Close interrupt. CreateFile is exclusive.
func openDevice(path, name string) (*os.File, error) {
	p, err := windows.UTF16PtrFromString(path)
	if err != nil {
		return nil, imprint.Errorf(imprint.Invalid, "open", path, "%w", err)
	}
	h, err := windows.CreateFile(p, windows.GENERIC_READ|windows.GENERIC_WRITE, 0, nil,
		windows.OPEN_EXISTING, windows.FILE_FLAG_OVERLAPPED, 0)
	if err != nil {
		return nil, unavailable(path, err)
	}
	return os.NewFile(uintptr(h), name), nil
}

// setUpSerial makes the line 115200 8N1 without flow control and drops what
// arrived before anybody asked.
func setUpSerial(f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var setErr error
	err = raw.Control(func(fd uintptr) {
		h := windows.Handle(fd)
		dcb := windows.DCB{BaudRate: windows.CBR_115200, ByteSize: 8, Parity: windows.NOPARITY, StopBits: windows.ONESTOPBIT}
		dcb.DCBlength = uint32(unsafe.Sizeof(dcb))
		dcb.Flags = 1 // fBinary, and nothing else: no parity, flow control, DTR or RTS handshake
		if setErr = windows.SetCommState(h, &dcb); setErr != nil {
			return
		}
		// A read returns 1 ms after the last byte of a burst.
		if setErr = windows.SetCommTimeouts(h, &windows.CommTimeouts{ReadIntervalTimeout: 1}); setErr != nil {
			return
		}
		setErr = windows.PurgeComm(h, windows.PURGE_RXCLEAR|windows.PURGE_TXCLEAR)
	})
	if err != nil {
		return err
	}
	return setErr
}
