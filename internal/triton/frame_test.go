package triton_test

import (
	"bytes"
	"strings"
	"testing"

	"imprint"
	"imprint/internal/triton"
)

// The vector is the one that cloud-init's tests and mdata-client's source use.
const vector = "V2 21 265ae1d8 dc4fae17 SUCCESS W10="

func TestFrameVector(t *testing.T) {
	f, ok := triton.DecodeFrame([]byte(vector), nil)
	if !ok || f.ID != 0xdc4fae17 || f.Code != triton.Success || string(f.Payload) != "[]" {
		t.Fatalf("decoded %+v, %v", f, ok)
	}
	line, err := triton.AppendFrame(nil, f)
	if err != nil || string(line) != vector+"\n" {
		t.Fatalf("encoded %q, %v", line, err)
	}
}

func TestFrameWithoutPayloadHasNoTrailingSpace(t *testing.T) {
	line, err := triton.AppendFrame(nil, triton.Frame{ID: 1, Code: triton.NotFound})
	if err != nil || string(line) != "V2 17 203d705b 00000001 NOTFOUND\n" {
		t.Fatalf("encoded %q, %v", line, err)
	}
}

func TestDecodeFrameAcceptsNoiseInFront(t *testing.T) {
	for _, line := range []string{vector + "\r", "[   12.3] printk: V2 of the thing " + vector} {
		if f, ok := triton.DecodeFrame([]byte(line), nil); !ok || string(f.Payload) != "[]" {
			t.Errorf("%q: %+v, %v", line, f, ok)
		}
	}
}

func TestDecodeFrameRefuses(t *testing.T) {
	for name, line := range map[string]string{
		"empty":           "",
		"marker only":     "V2 ",
		"short length":    "V2 20 265ae1d8 dc4fae17 SUCCESS W10=",
		"long length":     "V2 22 265ae1d8 dc4fae17 SUCCESS W10=",
		"padded length":   "V2 021 265ae1d8 dc4fae17 SUCCESS W10=",
		"signed length":   "V2 +21 265ae1d8 dc4fae17 SUCCESS W10=",
		"upper-case sum":  "V2 21 265AE1D8 dc4fae17 SUCCESS W10=",
		"short sum":       "V2 21 265ae1d dc4fae17 SUCCESS W10=",
		"flipped bit":     "V2 21 265ae1d8 dc4fae17 SUCCESS W11=",
		"cut":             "V2 21 265ae1d8 dc4fae17 SUCC",
		"two spaces":      "V2 21 265ae1d8  dc4fae17 SUCCESS W10=",
		"trailing text":   vector + " x",
		"other version":   "V3 21 265ae1d8 dc4fae17 SUCCESS W10=",
		"not hexadecimal": "V2 21 265ae1dg dc4fae17 SUCCESS W10=",
	} {
		if f, ok := triton.DecodeFrame([]byte(line), nil); ok {
			t.Errorf("%s: %q decoded as %+v", name, line, f)
		}
	}
}

func TestFrameLimits(t *testing.T) {
	full := strings.Repeat("x", triton.MaxValue)
	line := strings.TrimSuffix(frame(t, 0xffffffff, triton.Success, full), "\n")
	if len(line) > triton.MaxLine {
		t.Fatalf("a full frame has %d bytes, more than MaxLine", len(line))
	}
	if f, ok := triton.DecodeFrame([]byte(line), nil); !ok || string(f.Payload) != full {
		t.Fatal("a full frame does not decode")
	}
	_, err := triton.AppendFrame(nil, triton.Frame{Code: triton.Success, Payload: []byte(full + "x")})
	if imprint.KindOf(err) != imprint.Exhausted {
		t.Fatalf("oversize payload: %v", err)
	}
	key := strings.Repeat("k", triton.MaxKey)
	if put := triton.AppendPut(nil, key, make([]byte, triton.MaxPut-len(key))); len(put) > triton.MaxValue {
		t.Fatalf("the largest PUT has %d bytes", len(put))
	}
}

// emptyArgument is what mdata-get sends for an empty key: without an answer it
// would ask for ever.
const emptyArgument = "V2 13 a2169898 63b3dff2 GET "

func TestFrameWithAnEmptyPayloadMayHaveItsSpace(t *testing.T) {
	if f, ok := triton.DecodeFrame([]byte(emptyArgument), nil); !ok || f.ID != 0x63b3dff2 || f.Code != triton.Get || len(f.Payload) != 0 {
		t.Errorf("DecodeFrame(%q) = %+v, %v", emptyArgument, f, ok)
	}
}

func FuzzDecodeFrame(f *testing.F) {
	f.Add([]byte(vector))
	f.Add([]byte(emptyArgument))
	f.Add([]byte("V2 17 0ab2d3c6 00000001 NOTFOUND"))
	f.Add([]byte("\x1b[2J\x1b[01;01HBdsDxe: loading Boot0001" + vector))
	f.Add([]byte("V2 99999999999999999999 265ae1d8 dc4fae17 SUCCESS W10="))
	f.Fuzz(func(t *testing.T, line []byte) {
		got, ok := triton.DecodeFrame(line, nil)
		if !ok {
			return
		}
		again, err := triton.AppendFrame(nil, got)
		if err != nil {
			t.Fatalf("%q decoded to %+v, which does not encode: %v", line, got, err)
		}
		tail := bytes.TrimSuffix(line, []byte("\r"))
		again = bytes.TrimSuffix(again, []byte("\n"))
		if len(got.Payload) == 0 && bytes.HasSuffix(tail, []byte(" ")) {
			if f, ok := triton.DecodeFrame(again, nil); !ok || f.ID != got.ID || f.Code != got.Code || len(f.Payload) != 0 {
				t.Fatalf("%q decoded to %+v, which encodes to %q", line, got, again)
			}
			return
		}
		if !bytes.HasSuffix(tail, again) {
			t.Fatalf("%q decoded to %+v, which encodes to %q", line, got, again)
		}
	})
}

func FuzzParsePut(f *testing.F) {
	f.Add([]byte("a2V5 dmFsdWU="))
	f.Add([]byte("a2V5 "))
	f.Add([]byte(" "))
	f.Fuzz(func(t *testing.T, payload []byte) {
		key, value, ok := triton.ParsePut(payload)
		if ok && !bytes.Equal(triton.AppendPut(nil, key, value), payload) {
			t.Fatalf("%q parsed as %q, %q", payload, key, value)
		}
	})
}
