package guest

import (
	"time"
	"unsafe"

	"golang.org/x/sys/windows"
)

func setSystemTime(t time.Time) error {
	t = t.UTC()
	st := windows.Systemtime{
		Year: uint16(t.Year()), Month: uint16(t.Month()), DayOfWeek: uint16(t.Weekday()), Day: uint16(t.Day()),
		Hour: uint16(t.Hour()), Minute: uint16(t.Minute()), Second: uint16(t.Second()),
		Milliseconds: uint16(t.Nanosecond() / int(time.Millisecond)),
	}
	set := windows.NewLazySystemDLL("kernel32.dll").NewProc("SetSystemTime")
	if ok, _, err := set.Call(uintptr(unsafe.Pointer(&st))); ok == 0 {
		return err
	}
	return nil
}
