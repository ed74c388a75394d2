package relay

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"

	"imprint"
	"imprint/internal/hostapi"
)

// TestRestored: a control plane whose store was restored from a backup tells of
// lower revisions, or of other records under the same ones. What it tells counts,
// on the disk too, and what was reported meanwhile arrives.
func TestRestored(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		dir, p := t.TempDir(), newPlane()
		r := start(t, dir, p)
		tell := func(id imprint.InstanceID, revision int64, data string, list int64) hostapi.Notice {
			i := record(id, revision)
			i.Spec.UserData = data
			return hostapi.Notice{Revision: max(list, revision), Relist: list > 0, Instance: &hostapi.Instance{Revision: revision, Instance: *i}}
		}
		// heard sends lines and returns what the host role hears.
		heard := func(lines ...hostapi.Notice) (out []string) {
			t.Helper()
			for _, n := range lines {
				p.lines <- n
				synctest.Wait()
				for len(r.notices) > 0 {
					switch n := <-r.notices; {
					case n.Rewound:
						out = append(out, "rewound")
					case n.Instance != nil:
						out = append(out, fmt.Sprintf("%.2s %d %s", n.Instance.ID[34:], n.Instance.Revision, n.Instance.Spec.UserData))
					case n.Synced:
						out = append(out, "synced")
					}
				}
			}
			return out
		}
		want := func(what string, got []string, lines ...string) {
			t.Helper()
			if !slices.Equal(got, lines) {
				t.Errorf("%s: the host role hears %q, not %q", what, got, lines)
			}
		}
		onDisk := func() (out []string) {
			for _, i := range r.copy.instances() {
				out = append(out, fmt.Sprintf("%.2s %d %s", i.ID[34:], i.Revision, i.Spec.UserData))
			}
			return out
		}
		broken := hostapi.Notice{Revision: -1}
		one2, two2 := string(one[34:]), string(two[34:])

		want("the first run", heard(hostapi.Notice{Run: "A"}, tell(one, 50, "old", 60), tell(two, 40, "old", 60), hostapi.Notice{Revision: 60, Synced: true}, tell(one, 70, "new", 0)),
			"rewound", one2+" 50 old", two2+" 40 old", "synced", one2+" 70 new")

		// The same run goes on where it was.
		p.set(errGone)
		p.lines <- broken
		until(t, "the outage", func() bool { return !r.Connected() })
		if err := r.Report(t.Context(), said(one, "meanwhile")); err != nil {
			t.Fatal(err)
		}
		p.set(nil)
		until(t, "the connection", r.Connected)
		want("the same run", heard(hostapi.Notice{Run: "A"}, tell(one, 71, "newer", 0)), one2+" 71 newer")
		until(t, "the report", func() bool { return slices.Equal(p.names(one), []string{"meanwhile"}) })

		// Another run has a store in which the record is older, and one in which it is
		// another under the same revision; what it does not list is gone.
		for n, c := range []struct {
			revision int64
			data     string
		}{{45, "restored"}, {45, "restored otherwise"}} {
			run := fmt.Sprint("B", n)
			p.set(errGone)
			p.lines <- broken
			until(t, "the outage", func() bool { return !r.Connected() })
			if err := r.Report(t.Context(), said(one, run)); err != nil {
				t.Fatal(err)
			}
			p.set(nil)
			until(t, "the connection", r.Connected)
			line := fmt.Sprintf("%s %d %s", one2, c.revision, c.data)
			want("run "+run, heard(hostapi.Notice{Run: run}, tell(one, c.revision, c.data, 47), hostapi.Notice{Revision: 47, Synced: true}), "rewound", line, "synced")
			if disk := onDisk(); !slices.Equal(disk, []string{line}) {
				t.Errorf("run %s: on the disk is %q", run, disk)
			}
			until(t, "the report", func() bool { names := p.names(one); return names[len(names)-1] == run })
		}

		// A list that goes back within one run.
		want("a list from before", heard(tell(one, 46, "x", 0), tell(one, 80, "late", 0), tell(one, 44, "back", 45), hostapi.Notice{Revision: 45, Synced: true}),
			one2+" 46 x", one2+" 80 late", "rewound", one2+" 44 back", "synced")

		// A host that was away all the time has the copy of another past.
		r.stop()
		r = start(t, dir, p)
		if n := <-r.notices; n.Instance == nil || n.Instance.Revision != 44 {
			t.Errorf("the copy tells %+v", n)
		}
		until(t, "the connection", r.Connected)
		want("after a restart", heard(hostapi.Notice{Run: "C"}, tell(one, 43, "older still", 43), hostapi.Notice{Revision: 43, Synced: true}),
			"rewound", one2+" 43 older still", "synced")
		if disk := onDisk(); !slices.Equal(disk, []string{one2 + " 43 older still"}) {
			t.Errorf("on the disk is %q", disk)
		}
	})
}
