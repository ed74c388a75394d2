package enrol_test

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"imprint"
	"imprint/internal/enrol"
)

// scene is two servers over one store, about to do something at the same time.
type scene struct {
	t        testing.TB
	w        *world
	o        *oracle
	engines  [2]*enrol.Engine
	id       imprint.InstanceID
	m, rogue *machine
	tasks    []*task
	crashed  bool // one of them did; the others do not
}

// asks lets m send s to a server; the reply may get lost.
func (s *scene) asks(engine int, m *machine, sub imprint.Submission) {
	sub.Generation = s.w.get(s.id).Generation
	s.does("ask", func(ctx context.Context) {
		i, err := s.engines[engine].Enrol(ctx, sub)
		pause(ctx, "reply")
		s.o.replied(m, sub, i, err)
	})
}

func (s *scene) does(name string, do func(context.Context)) {
	t := start(s.t.Context(), name, do)
	if t.step() { // to its first read
		s.tasks = append(s.tasks, t)
	}
}

// scenes are pairs of things that happen at the same time, after what led there.
var scenes = map[string]func(*scene){
	"one machine at both servers": func(s *scene) {
		s.asks(0, s.m, s.m.up(s.id))
		s.asks(1, s.m, s.m.up(s.id))
	},
	"two machines": func(s *scene) {
		s.asks(0, s.m, s.m.up(s.id))
		s.asks(1, s.rogue, s.rogue.up(s.id))
	},
	"a machine and revocation": func(s *scene) {
		s.asks(0, s.m, s.m.up(s.id))
		s.does("revoke", func(ctx context.Context) { s.engines[1].Revoke(ctx, s.id, "", "ann") })
	},
	"a machine and rebirth": func(s *scene) {
		s.asks(0, s.m, s.m.up(s.id))
		s.does("rebirth", func(ctx context.Context) { s.engines[1].Rebirth(ctx, s.id, "ann") })
	},
	"a machine and its successor": func(s *scene) {
		s.asks(0, s.m, s.m.up(s.id))
		s.does("rebirth and ask", func(ctx context.Context) {
			pause(ctx, "read")
			s.engines[1].Rebirth(s.t.Context(), s.id, "ann") // in one turn
			sub := s.rogue.up(s.id)
			i, err := s.engines[1].Enrol(ctx, sub)
			s.o.replied(s.rogue, sub, i, err)
		})
	},
	"a machine and a new token": func(s *scene) {
		s.asks(0, s.m, s.m.est(s.id, token(s.t, s.w, s.id)))
		s.does("token", func(ctx context.Context) { s.engines[1].Token(ctx, s.id, time.Hour) })
	},
	"a machine and the end of its window": func(s *scene) {
		s.asks(0, s.m, s.m.up(s.id))
		s.does("expire", func(ctx context.Context) {
			s.w.now = s.w.now.Add(2 * time.Hour)
			s.engines[1].Expire(ctx, s.id)
		})
	},
	"two renewals": func(s *scene) {
		s.w.enrol(s.t, s.id, s.m)
		s.w.now = s.w.now.Add(4 * 24 * time.Hour)
		s.asks(0, s.m, s.m.up(s.id))
		s.asks(1, s.m, s.m.est(s.id, imprint.Secret{}))
	},
	"a renewal and another machine": func(s *scene) {
		s.w.enrol(s.t, s.id, s.m)
		s.w.now = s.w.now.Add(4 * 24 * time.Hour)
		s.asks(0, s.m, s.m.up(s.id))
		s.asks(1, s.rogue, s.rogue.up(s.id))
	},
	"a renewal and revocation": func(s *scene) {
		s.w.enrol(s.t, s.id, s.m)
		s.w.now = s.w.now.Add(4 * 24 * time.Hour)
		s.asks(0, s.m, s.m.up(s.id))
		s.does("revoke", func(ctx context.Context) { s.engines[1].Revoke(ctx, s.id, "", "ann") })
	},
	"a claim that was left behind, at both servers": func(s *scene) {
		s.w.signer.fail = imprint.Errorf(imprint.Unavailable, "sign", "", "away")
		_, err := s.w.engine.Enrol(s.t.Context(), s.m.up(s.id))
		wantKind(s.t, err, imprint.Unavailable)
		s.w.now = s.w.now.Add(8 * 24 * time.Hour)
		s.asks(0, s.m, s.m.up(s.id))
		s.asks(1, s.m, s.m.up(s.id))
	},
	"approval and the waiting machine": func(s *scene) {
		s.waiting()
		s.asks(0, s.m, s.m.up(s.id))
		s.does("approve", func(ctx context.Context) { s.engines[1].Approve(ctx, s.id, "ann") })
	},
	"approval and another machine": func(s *scene) {
		s.waiting()
		s.asks(0, s.rogue, s.rogue.up(s.id))
		s.does("approve", func(ctx context.Context) { s.engines[1].Approve(ctx, s.id, "ann") })
	},
	"confirmation and another machine": func(s *scene) {
		i, err := s.w.engine.Enrol(s.t.Context(), s.m.up(s.id))
		if err != nil {
			s.t.Fatal(err)
		}
		r := s.m.confirmation(s.t, s.id, 1, i.Enrolment.Certificate.DER)
		s.does("confirm", func(ctx context.Context) { s.engines[0].Report(ctx, r) })
		s.asks(1, s.rogue, s.rogue.up(s.id))
	},
}

func (s *scene) waiting() {
	s.w.store.edit(s.id, func(i *imprint.Instance) { i.Spec.Policy.Approval = true })
	_, err := s.w.engine.Enrol(s.t.Context(), s.m.up(s.id))
	wantKind(s.t, err, imprint.Pending)
}

// TestEveryInterleaving is the small and complete companion of
// TestInterleavings. It goes through all orders in which two servers can take
// turns, without a crash and with one of them crashing, or its reply getting
// lost, at each place. Its signer never makes the same bytes twice, as one that
// is not deterministic would not, so that it shows whose certificate left. Afterwards the machine whose claim stands asks again and
// gets through.
func TestEveryInterleaving(t *testing.T) {
	t.Parallel()
	for name, build := range scenes {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m, rogue := newMachine(t), newMachine(t)
			runs := 0
			for path := []int{}; path != nil; runs++ {
				s := &scene{t: t, w: newWorld(), m: m, rogue: rogue}
				s.o = watch(s.w)
				s.engines = [2]*enrol.Engine{s.w.engine, s.w.newEngine()}
				s.id = s.w.reserve(t, func(s *imprint.Spec) { s.Policy.Window = imprint.Duration(time.Hour) })
				build(s)
				path = s.play(path)
				s.heal()
				if faults := s.o.check(); len(faults) > 0 {
					t.Fatalf("run %d:\n%s", runs, strings.Join(faults, "\n"))
				}
			}
			t.Logf("%d runs", runs)
		})
	}
}

// play runs the tasks, deciding at each turn as path says, and as 0 where it
// ends: which task goes on, or after all of these, that the last one to go on
// dies where it stands. Dying is no turn for others to wait for, so that it need
// not be tried later too. It returns the path of the next run, or nil after the last.
func (s *scene) play(path []int) []int {
	var widths []int
	var last *task
	for turn := 0; len(s.tasks) > 0; turn++ {
		width := len(s.tasks)
		if last != nil {
			width++
		}
		if turn == len(path) {
			path = append(path, 0)
		}
		widths = append(widths, width)
		if path[turn] == len(s.tasks) {
			last.die()
			s.tasks = slices.DeleteFunc(s.tasks, func(t *task) bool { return t == last })
			last = nil
			s.crashed = true
			continue
		}
		t := s.tasks[path[turn]]
		last = nil
		if !s.turn(t) {
			s.tasks = slices.DeleteFunc(s.tasks, func(u *task) bool { return u == t })
		} else if !s.crashed {
			last = t
		}
	}
	for last := len(path) - 1; last >= 0; last-- {
		if path[last]+1 < widths[last] {
			return append(path[:last:last], path[last]+1)
		}
	}
	return nil
}

// turn runs t to the next place where the order matters: before a read of the
// store that begins a move, before its write, before the signer is asked, and
// before the reply. What follows a write or a signature can as well come at once.
func (s *scene) turn(t *task) (more bool) {
	for before := t.at; t.step(); before = t.at {
		if t.at != "written" && t.at != "signed" && before != "signed" {
			return true
		}
	}
	return false
}

// heal lets the machine whose claim stands, or m if there is none, try again
// until it is confirmed, unless the generation has ended.
func (s *scene) heal() {
	s.t.Helper()
	i := s.w.get(s.id)
	m := s.m
	if c := i.Enrolment.Claim; c != nil && c.Key == s.rogue.id {
		m = s.rogue
	}
	if owner, bound := s.w.store.keys[m.id]; bound && owner.gen != i.Generation {
		m = newMachine(s.t) // its key belongs to the life before
	}
	if !i.Enrolment.State.Open() || i.Enrolment.Claim == nil && !s.w.now.Before(i.Enrolment.Expires) {
		return
	}
	i, err := s.w.engine.Enrol(s.t.Context(), m.up(s.id))
	if err != nil && imprint.KindOf(err) == imprint.Pending {
		i, err = s.w.engine.Approve(s.t.Context(), s.id, "ann")
	}
	if err != nil {
		s.o.fault("the machine is stranded: %v", err)
		return
	}
	s.o.replied(m, m.up(s.id), i, nil)
	if err := s.w.engine.Report(s.t.Context(), m.confirmation(s.t, s.id, i.Generation, i.Enrolment.Certificate.DER)); err != nil {
		s.o.fault("the machine cannot confirm: %v", err)
	}
}
