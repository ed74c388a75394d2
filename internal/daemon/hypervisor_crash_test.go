package daemon_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"imprint"
)

// Machines read their parameters one after the other while server and host are
// killed in turn: every value that a machine got is on its timeline, in order, and
// nothing twice but what the machine itself asked for again.
func TestKilledAmongReads(t *testing.T) {
	t.Parallel()
	const machines, params = 4, 30
	site := newSite(t)
	site.withHosts(t)
	server := site.start(t, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 6*patience)
	defer cancel()
	h := site.hypervisor(t)
	h.start(t, site.joinFile(t, hypervisorName))

	var names []string
	values := map[string]imprint.Secret{}
	spec := serialOnly("")
	spec.Host = hypervisorName
	for n := range params {
		name := fmt.Sprintf("p%02d", n)
		names = append(names, name)
		values[name] = imprint.NewSecret([]byte("value of " + name))
		spec.Params = append(spec.Params, imprint.Param{Name: name, Visibility: imprint.Private})
	}
	all := make([]*machine, machines)
	var enrolling sync.WaitGroup
	for n := range all {
		spec.Name = imprint.InstanceName(fmt.Sprintf("web-%d", n))
		created, err := server.Create(ctx, spec, values, false)
		if err != nil {
			t.Fatal(err)
		}
		h.untilConnected(t, server, string(spec.Name))
		m := newMachine(t, h.run, created.Instance.ID)
		all[n] = m
		enrolling.Go(func() {
			err := m.enrol(ctx)
			for _, name := range names { // so that the host has them
				if err == nil {
					_, err = m.open(ctx, name)
				}
			}
			if err != nil {
				t.Errorf("machine %d: %v", n, err)
			}
		})
	}
	enrolling.Wait()
	if t.Failed() {
		t.FailNow()
	}
	before := make([]int, machines)
	for n := range all {
		before[n] = len(reads(t, server, fmt.Sprintf("web-%d", n)))
	}

	var got atomic.Int32
	var reading sync.WaitGroup
	steps := make([]chan struct{}, 4)
	for i := range steps {
		steps[i] = make(chan struct{})
	}
	for n, m := range all {
		reading.Go(func() {
			for _, name := range names {
				for {
					value, err := m.open(ctx, name)
					if err == nil && value.Equal(values[name]) {
						break
					}
					if err == nil || ctx.Err() != nil || !later(err) {
						t.Errorf("machine %d, %s: %v", n, name, err)
						return
					}
				}
				if count := got.Add(1); count%(machines*params/5) == 0 && int(count)/(machines*params/5) <= len(steps) {
					close(steps[int(count)/(machines*params/5)-1])
				}
			}
		})
	}
	for i, act := range []func(){
		func() { server.kill(syscall.SIGKILL) },
		func() { h.kill(); h.start(t, "") },
		func() { server = site.start(t, nil) },
		func() { server.kill(syscall.SIGKILL); h.kill(); server = site.start(t, nil); h.start(t, "") },
	} {
		select {
		case <-steps[i]:
		case <-ctx.Done():
			t.Fatalf("the machines got stuck before step %d; the host's log:\n%s", i, h.log)
		}
		t.Logf("step %d after %d reads, %d reports on the disk", i, got.Load(), h.queued(t))
		act()
	}
	reading.Wait()
	until(t, "the queue to be empty", func() bool { return h.queued(t) == 0 })
	for n := range all {
		recorded := reads(t, server, fmt.Sprintf("web-%d", n))[before[n]:]
		if once := slices.Compact(slices.Clone(recorded)); !slices.Equal(once, names) {
			t.Errorf("machine %d read %q", n, recorded)
		}
		if repeated := len(recorded) - params; repeated > 2 { // one for each death of the host
			t.Errorf("machine %d: %d of its reads are there again: %q", n, repeated, recorded)
		}
	}
}
