package guest

import (
	"encoding/json"
	"strings"
	"testing"

	"imprint"
)

func TestWhichLifeAPayloadBegins(t *testing.T) {
	const id, other = imprint.InstanceID("6f1d0c1e-7d0c-4f5e-9c39-5b1f4c1b7e11"), imprint.InstanceID("7f1d0c1e-7d0c-4f5e-9c39-5b1f4c1b7e11")
	enrolled := &record{Payload: imprint.Payload{Instance: id, Generation: 2, CA: "ours"}}
	for name, test := range map[string]struct {
		rec     *record
		payload imprint.Payload
		live    bool
		want    succession
		refused bool
	}{
		"first":                          {nil, imprint.Payload{Instance: id, Generation: 7, CA: "any"}, false, firstLife, false},
		"same":                           {enrolled, imprint.Payload{Instance: id, Generation: 2, CA: "ours"}, false, sameLife, false},
		"next, same CA, on a medium":     {enrolled, imprint.Payload{Instance: id, Generation: 3, CA: "ours"}, false, nextLife, false},
		"next, another CA, by the host":  {enrolled, imprint.Payload{Instance: id, Generation: 3, CA: "new"}, true, nextLife, false},
		"next, another CA, on a medium":  {enrolled, imprint.Payload{Instance: id, Generation: 3, CA: "thief"}, false, 0, true},
		"same, another CA, by the host":  {enrolled, imprint.Payload{Instance: id, Generation: 2, CA: "new"}, true, sameLife, false},
		"same, another CA, on a medium":  {enrolled, imprint.Payload{Instance: id, Generation: 2, CA: "thief"}, false, 0, true},
		"earlier":                        {enrolled, imprint.Payload{Instance: id, Generation: 1, CA: "ours"}, true, 0, true},
		"another machine's, by the host": {enrolled, imprint.Payload{Instance: other, Generation: 3, CA: "ours"}, true, 0, true},
	} {
		got, err := test.rec.succeed(&test.payload, test.live)
		if refused := imprint.KindOf(err) == imprint.Conflict && err != nil; refused != test.refused || !refused && (err != nil || got != test.want) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
		if test.refused && imprint.HintOf(err) == "" {
			t.Errorf("%s: no hint: %v", name, err)
		}
	}
}

const testRecord = `{"payload":{"imprint":1,"time":"2026-03-01T12:00:00Z","instance":"6f1d0c1e-7d0c-4f5e-9c39-5b1f4c1b7e11",
	"generation":2,"tenant":"default","name":"web-1","ca":"x"},"source":"serial port /dev/ttyS1","confirmed":"1a","closed":"1a"}`

func TestDamagedRecordsAreRefused(t *testing.T) {
	t.Parallel()
	if _, err := parseRecord([]byte(testRecord)); err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string]string{
		"empty":              "",
		"cut":                testRecord[:100],
		"null":               "null",
		"another document":   `{"source":"x"}`,
		"a tenant as a path": strings.Replace(testRecord, `"default"`, `"../../../etc/cron.d/x"`, 1),
		"a name as a path":   strings.Replace(testRecord, `"web-1"`, `"a/b"`, 1),
		"no generation":      strings.Replace(testRecord, `"generation":2`, `"generation":0`, 1),
		"a later version":    strings.Replace(testRecord, `"imprint":1`, `"imprint":2`, 1),
		"a serial of words":  strings.Replace(testRecord, `"1a"`, `"none yet"`, 1),
	} {
		if r, err := parseRecord([]byte(b)); err == nil {
			t.Errorf("%s: %+v", name, r)
		}
	}
}

// FuzzRecord: what is accepted names nothing outside its directory and is the
// same when it is written and read again.
func FuzzRecord(f *testing.F) {
	f.Add([]byte(testRecord))
	f.Add([]byte(strings.Replace(testRecord, `"default"`, `"../x"`, 1)))
	f.Add([]byte(`{"payload":null}`))
	f.Add([]byte("{}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := parseRecord(b)
		if err != nil {
			return
		}
		if strings.ContainsAny(string(r.Payload.Tenant)+string(r.Payload.Name)+string(r.Payload.Instance), "/.\\") {
			t.Errorf("%+v", r.Payload)
		}
		out, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := parseRecord(out); err != nil {
			t.Errorf("what was read does not read again: %v\n%s", err, out)
		}
	})
}
