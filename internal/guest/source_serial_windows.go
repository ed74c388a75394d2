package guest

import (
	"context"
	"unsafe"

	"golang.org/x/sys/windows"

	"imprint"
)

// serialSource is the second serial port.
type serialSource struct{ path string }

func newSerialSource(Layout) serialSource { return serialSource{`\\.\COM2`} }

func (s serialSource) String() string { return "serial port " + s.path }

func (s serialSource) Try(ctx context.Context) (*finding, error) {
	d, err := openDevice(s.path)
	if err != nil {
		return nil, err
	}
	if err := setUpSerial(d.handle); err != nil {
		d.Close()
		return nil, imprint.Errorf(imprint.Unavailable, "set up", s.path, "%w", err)
	}
	return greet(ctx, s.String(), d)
}

// setUpSerial makes the line 115200 8N1 without flow control and drops what
// arrived before anybody asked.
func setUpSerial(port windows.Handle) error {
	dcb := windows.DCB{BaudRate: windows.CBR_115200, ByteSize: 8, Parity: windows.NOPARITY, StopBits: windows.ONESTOPBIT}
	dcb.DCBlength = uint32(unsafe.Sizeof(dcb))
	dcb.Flags = 1 // fBinary, and nothing else: no parity, flow control, DTR or RTS handshake
	if err := windows.SetCommState(port, &dcb); err != nil {
		return err
	}
	// A read returns a few milliseconds after the last byte of a burst.
	if err := windows.SetCommTimeouts(port, &windows.CommTimeouts{ReadIntervalTimeout: 5}); err != nil {
		return err
	}
	return windows.PurgeComm(port, windows.PURGE_RXCLEAR|windows.PURGE_TXCLEAR)
}
