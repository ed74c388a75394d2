package imprint

import (
	"strconv"
	"strings"
	"time"
)

// Duration is a [time.Duration] that reads and writes days: "7d", "36h", "90s".
type Duration time.Duration

const day = 24 * time.Hour

// String writes whole days as "7d" and anything else as [time.Duration] does.
func (d Duration) String() string {
	if t := time.Duration(d); t != 0 && t%day == 0 {
		return strconv.FormatInt(int64(t/day), 10) + "d"
	}
	return time.Duration(d).String()
}

// ParseDuration reads what [Duration.String] writes. Negative durations are refused.
func ParseDuration(s string) (Duration, error) {
	if n, ok := strings.CutSuffix(s, "d"); ok {
		days, err := strconv.ParseUint(n, 10, 16)
		if err != nil {
			return 0, Errorf(Invalid, "parse", "duration", "%q is not a whole number of days", s)
		}
		return Duration(time.Duration(days) * day), nil
	}
	t, err := time.ParseDuration(s)
	if err != nil || t < 0 {
		return 0, Errorf(Invalid, "parse", "duration", "%q is not a duration", s).
			WithHint("write it like 90s, 36h or 7d")
	}
	return Duration(t), nil
}

// MarshalText implements [encoding.TextMarshaler].
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText implements [encoding.TextUnmarshaler].
func (d *Duration) UnmarshalText(b []byte) (err error) {
	*d, err = ParseDuration(string(b))
	return err
}
