package qemu

import (
	"bufio"
	"os"
	"strconv"
	"strings"
)

// HostTSC returns the rate of this machine's time-stamp counter in kHz, or 0 if
// it is not known. It is read from /proc/cpuinfo each time: another machine, or
// this one after a migration, has another rate.
func HostTSC() int {
	f, err := os.Open("/proc/cpuinfo")
	if err != nil {
		return 0
	}
	defer f.Close()
	return tscOf(bufio.NewScanner(f))
}

// tscOf finds the first "cpu MHz" line, which Linux fills on every x86 CPU. On
// a CPU that scales its frequency that is the present clock and not the counter's
// rate; the guest's kernel only starts from it and refines it itself.
func tscOf(lines *bufio.Scanner) int {
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), ":")
		if strings.TrimSpace(name) != "cpu MHz" {
			continue
		}
		mhz, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
		if err != nil || mhz <= 0 || mhz > 100_000 {
			return 0
		}
		return int(mhz*1000 + 0.5)
	}
	return 0
}
