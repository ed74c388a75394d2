package guest

import (
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
