package store

import (
	"encoding/json"
	"fmt"
	"strings"

	"imprint"
)

// inconsistencies reads everything under the store's prefix and says what does
// not fit together: half of a change.
func inconsistencies(s *Store, read func(query) (page, error)) ([]string, error) {
	all, err := read(query{key: string(s.keys), end: after(string(s.keys))})
	if err != nil {
		return nil, err
	}
	keys := make(map[string]string)
	for _, p := range all.pairs {
		keys[strings.TrimPrefix(p.key, string(s.keys))] = string(p.value)
	}
	var faults []string
	expect := func(ok bool, format string, args ...any) {
		if !ok {
			faults = append(faults, fmt.Sprintf(format, args...))
		}
	}
	events := make(map[string]uint64)
	records := make(map[string]record)
	for key, value := range keys {
		if parts := strings.Split(key, "/"); parts[0] == "instance" && parts[2] == "event" {
			together, err := decodeEvents(&pair{key: key, value: []byte(value)})
			if err != nil {
				return nil, err
			}
			for i := range together {
				expect(parts[3] == hex16(together[len(together)-1].Seq) && (i == 0 || together[i].Seq == together[i-1].Seq+1),
					"%s has events %d with the wrong numbers", key, i)
			}
			events[parts[1]] += uint64(len(together))
		} else if parts[0] == "instance" {
			var r record
			if err := json.Unmarshal([]byte(value), &r); err != nil {
				return nil, err
			}
			records[parts[1]] = r
		}
	}
	for id, n := range events {
		_, there := records[id]
		expect(there, "%d events without a record: %s", n, id)
	}
	for id, r := range records {
		kept := min(r.Events, imprint.MaxEvents)
		expect(events[id] >= kept && events[id] < kept+MaxChangeEvents, "%s counts %d events and has %d", id, r.Events, events[id])
		_, last := keys["instance/"+id+"/event/"+hex16(r.Events)]
		expect(last, "%s has no event %d", id, r.Events)
		expect(keys[fmt.Sprintf("name/%s/%s", r.Spec.Tenant, r.Spec.Name)] == id, "%s has lost its name", id)
		if r.Spec.Host != "" {
			_, placed := keys[fmt.Sprintf("host/%s/%s", r.Spec.Host, id)]
			expect(placed, "%s has lost its place", id)
		}
		if r.Wake != 0 {
			_, reminder := keys[fmt.Sprintf("wake/%s/%s", hex16(uint64(r.Wake)), id)]
			expect(reminder, "%s has lost its reminder", id)
		}
		if c := r.Enrolment.Claim; c != nil {
			expect(strings.Contains(keys["key/"+string(c.Key)], id), "%s has lost its key", id)
		}
	}
	for key, value := range keys {
		parts := strings.Split(key, "/")
		switch parts[0] {
		case "name":
			_, there := records[value]
			expect(there, "%s names nobody", key)
		case "host", "wake":
			_, there := records[parts[2]]
			expect(there, "%s is of nobody", key)
		case "sealed":
			_, there := records[parts[1]]
			expect(there, "%s is of nobody", key)
		}
	}
	return faults, nil
}
