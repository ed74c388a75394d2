package imprint_test

import (
	"encoding/json"
	"strings"
	"testing"

	"imprint"
)

// FuzzDecodeMediumEnd: what is accepted is within limits, and reads the same again.
func FuzzDecodeMediumEnd(f *testing.F) {
	digest := string(imprint.DigestOf(nil))
	f.Add([]byte(`{"digest":"` + digest + `","state":"taken-away","detail":"zeroed"}`))
	f.Add([]byte(`{"digest":"` + digest + `","state":"not-taken-away","detail":"` + strings.Repeat("\\u0001", 1024) + `"}`))
	f.Add([]byte(`{"digest":"` + digest + `","state":"out","detail":"x"}`))
	f.Add([]byte(`{"digest":"` + strings.ToUpper(digest) + `","state":"taken-away","detail":"x"}`))
	f.Add([]byte(`{"digest":"","state":"taken-away","detail":""} {}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, b []byte) {
		end, err := imprint.DecodeMediumEnd(b)
		if err != nil {
			if imprint.KindOf(err) != imprint.Invalid {
				t.Errorf("%v", err)
			}
			return
		}
		if len(end.Digest) != 64 || len(end.Detail) == 0 || len(end.Detail) > imprint.MaxMediumDetail || end.State != imprint.MediumTaken && end.State != imprint.MediumLeft {
			t.Errorf("accepted %+v", end)
		}
		again, err := json.Marshal(end)
		if err != nil {
			t.Fatal(err)
		}
		if same, err := imprint.DecodeMediumEnd(again); err != nil || *same != *end {
			t.Errorf("%s reads as %+v, %v", again, same, err)
		}
	})
}

// What does not say what became of a medium is refused.
func TestDecodeMediumEnd(t *testing.T) {
	t.Parallel()
	digest := string(imprint.DigestOf(nil))
	with := func(digest, state, detail string) string {
		return `{"digest":"` + digest + `","state":"` + state + `","detail":"` + detail + `"}`
	}
	for body, ok := range map[string]bool{
		with(digest, "taken-away", "x"):                                          true,
		with(digest, "not-taken-away", strings.Repeat("x", 1024)):                true,
		with(digest, "taken-away", strings.Repeat("x", 1025)):                    false,
		with(digest, "taken-away", ""):                                           false,
		with(digest, "out", "x"):                                                 false,
		with(digest[:62], "taken-away", "x"):                                     false,
		with(strings.ToUpper(digest), "taken-away", "x"):                         false,
		with(digest, "taken-away", "x") + "{}":                                   false,
		strings.Replace(with(digest, "taken-away", "x"), "{", `{"number":1,`, 1): false,
		"": false, "null": false,
	} {
		if _, err := imprint.DecodeMediumEnd([]byte(body)); (err == nil) != ok {
			t.Errorf("%s: %v", body, err)
		}
	}
}
