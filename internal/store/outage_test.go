package store

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"imprint"
)

// TestUnreachable wants a clear answer in time from clusters that are not there.
func TestUnreachable(t *testing.T) {
	t.Parallel()
	nobody := fmt.Sprintf("http://127.0.0.1:%d", freePorts(t, 1)[0])
	began := time.Now()
	_, err := OpenCluster(t.Context(), Cluster{Endpoints: []string{nobody}, StartTimeout: time.Second})
	wantKind(t, err, imprint.Unavailable)
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("the answer took %v", took)
	}
	if !strings.Contains(err.Error(), nobody) {
		t.Errorf("error %q does not name the endpoint", err)
	}
}

// TestClusterConfig refuses what cannot work or is not safe.
func TestClusterConfig(t *testing.T) {
	t.Parallel()
	for _, c := range []Cluster{
		{},
		{Endpoints: []string{"etcd-1.example:2379"}},
		{Endpoints: []string{"http://etcd-1.example:2379"}},
		{Endpoints: []string{"https://etcd-1.example:2379", "http://127.0.0.1:2379"}},
		{Endpoints: []string{"https://etcd-1.example:2379"}, CA: "/nowhere/ca.pem"},
		{Endpoints: []string{"https://etcd-1.example:2379"}, Cert: "/nowhere/cert.pem", Key: "/nowhere/key.pem"},
	} {
		_, err := OpenCluster(t.Context(), c)
		wantKind(t, err, imprint.Invalid)
	}
}

// TestOutage has two servers on a cluster of three and kills its members: with
// one gone all goes on, with two gone requests fail in time, and when they are
// back all goes on again. At every time one claim at most has effect.
func TestOutage(t *testing.T) {
	t.Parallel()
	cluster := newCluster(t)
	servers := []*Store{cluster.open(t), cluster.open(t)}
	for _, s := range servers {
		defer s.Close()
	}
	s := servers[0]

	const total = 60
	ids := make([]imprint.InstanceID, total)
	for n := range ids {
		ids[n] = create(t, s, fmt.Sprintf("outage-%d", n)).ID
	}
	next := follow(t, servers[1], Scope{Tenant: imprint.DefaultTenant}, 0)
	for range ids {
		next()
	}
	wantNotices(t, next, "synced")

	// Both servers claim every instance; a member dies in the middle.
	winners := make([][]imprint.KeyID, total)
	var mu sync.Mutex // guards winners
	var wg sync.WaitGroup
	middle := make(chan struct{})
	for w, server := range servers {
		wg.Go(func() {
			for n, id := range ids {
				if w == 0 && n == total/3 {
					close(middle)
				}
				key := keyID(2*n + w)
				if claim(t, server, id, key) {
					mu.Lock()
					winners[n] = append(winners[n], key)
					mu.Unlock()
				}
			}
		})
	}
	<-middle
	cluster.members[0].kill()
	wg.Wait()
	for n, id := range ids {
		i, err := s.Instance(t.Context(), id)
		if err != nil || i.Events != 2 || len(winners[n]) > 1 || len(winners[n]) == 1 && winners[n][0] != i.Enrolment.Claim.Key {
			t.Errorf("instance %d: %d events, won by %v, %v", n, i.Events, winners[n], err)
		}
	}

	cluster.members[1].kill()
	began := time.Now()
	_, err := s.Update(t.Context(), ids[0], to(imprint.Issued, imprint.EventIssued))
	wantKind(t, err, imprint.Unavailable)
	_, err = s.Instance(t.Context(), ids[0])
	wantKind(t, err, imprint.Unavailable)
	if took := time.Since(began); took > 3*cluster.config.RequestTimeout {
		t.Errorf("two requests without a majority took %v", took)
	}

	cluster.members[0].start(t)
	cluster.members[1].start(t)
	ctx := soon(t)
	for {
		if _, err = servers[1].Instance(ctx, ids[0]); err == nil || ctx.Err() != nil {
			break
		}
	}
	if err != nil {
		t.Fatalf("after the members came back: %v", err)
	}
	update(t, servers[1], ids[0], to(imprint.Closed, imprint.EventClosed))

	// The watch that was open all the time has missed nothing.
	claimed := make(map[imprint.InstanceID]int)
	for n := next(); n.Instance == nil || n.Instance.Enrolment.State != imprint.Closed; n = next() {
		if n.Instance != nil && !n.Relist && n.Instance.Enrolment.State == imprint.Claimed {
			claimed[n.Instance.ID]++
		}
	}
	for _, id := range ids {
		if claimed[id] != 1 {
			t.Errorf("the claim of %s was told %d times", id, claimed[id])
		}
	}
	wantConsistent(t, s)
}

var errClaimed = errors.New("claimed already")

// claim binds key to the instance unless another one is bound, as a server
// does that asks again when etcd is unavailable. It reports whether key won.
func claim(t *testing.T, s *Store, id imprint.InstanceID, key imprint.KeyID) bool {
	for ctx := soon(t); ; {
		_, err := s.Update(ctx, id, func(i *imprint.Instance) (imprint.Change, error) {
			if c := i.Enrolment.Claim; c != nil && c.Key != key {
				return imprint.Change{}, errClaimed
			} else if c != nil {
				return imprint.Change{Keep: true}, nil
			}
			i.Enrolment.State = imprint.Claimed
			i.Enrolment.Claim = &imprint.Claim{Key: key}
			return imprint.Change{BindKey: key, Events: []imprint.Event{event(imprint.EventClaimed)}}, nil
		})
		switch {
		case err == nil:
			return true
		case err == errClaimed:
			return false
		case imprint.KindOf(err) != imprint.Unavailable || ctx.Err() != nil:
			t.Errorf("claim: %v", err)
			return false
		}
	}
}
