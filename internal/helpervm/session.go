package helpervm

import (
	"errors"
	"io"
	"slices"
	"strings"
	"time"

	"imprint"
	"imprint/internal/job"
)

// Limits of what a guest may send before its VM is ended.
const (
	maxMessages = 4 << 20
	maxLogLines = 20_000 // passed on; more are dropped
)

// session is the host's end of one job. What it receives is the guest's word.
type session struct {
	conn  *job.Conn
	job   *job.Job
	begin time.Time
	clean *strings.Replacer // takes secrets out of text
	c     *Config
	lines int
}

// scrubber replaces the values of secrets, and each longer line of one.
func scrubber(secrets map[string]imprint.Secret) *strings.Replacer {
	const shortest = 4 // what is shorter would take ordinary text apart
	var parts, pairs []string
	for _, s := range secrets {
		value := string(s.Reveal())
		for _, part := range append([]string{value}, strings.Split(value, "\n")...) {
			if part = strings.TrimSpace(part); len(part) >= shortest {
				parts = append(parts, part, job.Printable([]byte(part))) // as text has it that was cleaned before
			}
		}
	}
	// Of two that fit at a place the first wins, and the rest of the longer would be left.
	slices.SortFunc(parts, func(a, b string) int { return len(b) - len(a) })
	for _, part := range parts {
		pairs = append(pairs, part, imprint.Secret{}.String())
	}
	return strings.NewReplacer(pairs...)
}

// run sends the job and returns the guest's result. It fails with [io.EOF] in the
// chain if the guest is gone, and with kind [imprint.Invalid] if it does not keep to
// the protocol.
func (s *session) run() (*job.Result, error) {
	m, err := s.conn.Receive()
	if err != nil {
		return nil, err
	}
	if m.Hello == nil {
		return nil, violation("it did not begin with a greeting")
	}
	ready := time.Since(s.begin)
	booted := ready - min(max(m.Hello.Age, 0), ready)
	if m.Hello.Version != job.Version {
		return nil, imprint.Errorf(imprint.Invalid, "greet", "its agent", "it speaks version %d, this program %d", m.Hello.Version, job.Version).
			WithHint("install imprint and imprint-helper of one release")
	}
	if err := job.SendJob(s.conn, s.job); err != nil {
		return nil, err
	}
	for range maxMessages {
		m, err := s.conn.Receive()
		switch {
		case err != nil:
			return nil, err
		case m.Log != nil:
			s.log(m.Log)
		case m.Progress != nil:
			s.progress(m.Progress)
		case m.Result != nil:
			m.Result.Booted, m.Result.Ready = booted, ready
			return s.check(m.Result)
		default:
			return nil, violation("it sent what only the host sends")
		}
	}
	return nil, imprint.Errorf(imprint.Exhausted, "hear", "its agent", "it sent more than %d messages", maxMessages)
}

func violation(format string, args ...any) error {
	return imprint.Errorf(imprint.Invalid, "hear", "its agent", format, args...)
}

func (s *session) log(l *job.Log) {
	s.lines++
	switch {
	case s.c.Log == nil || s.lines > maxLogLines:
	case s.lines == maxLogLines:
		s.c.Log(job.Log{Line: "more is not shown"})
	default:
		s.c.Log(job.Log{Task: s.text(l.Task), Line: s.text(l.Line)})
	}
}

func (s *session) progress(p *job.Progress) {
	if s.c.Progress == nil || p.Done < 0 || p.Total < 0 {
		return
	}
	s.c.Progress(job.Progress{Task: s.text(p.Task), Done: p.Done, Total: p.Total, Unit: s.text(p.Unit)})
}

// text is the guest's, cut to the length of a line and as it may be shown.
func (s *session) text(t string) string {
	return s.clean.Replace(job.Printable([]byte(t[:min(len(t), job.MaxLine)])))
}

// check returns the result if it is that of this job.
func (s *session) check(r *job.Result) (*job.Result, error) {
	if r.Nonce != s.job.Nonce {
		return nil, violation("it sent the result of another job")
	}
	if len(r.Tasks) > len(s.job.Tasks) || r.Fault == nil && len(r.Tasks) != len(s.job.Tasks) {
		return nil, violation("it reported %d tasks; the job has %d", len(r.Tasks), len(s.job.Tasks))
	}
	for i := range r.Tasks {
		if r.Tasks[i].Name != s.job.Tasks[i].String() {
			return nil, violation("it reported a task that the job does not have")
		}
		for _, t := range r.Tasks[i].Texts() {
			*t = s.text(*t)
		}
	}
	if f := r.Fault; f != nil {
		for _, t := range []*string{&f.Op, &f.Operand, &f.Cause, &f.Hint} {
			*t = s.text(*t)
		}
	}
	return r, nil
}

// gone reports whether err says that the VM is no more, and not what it did wrong.
func gone(err error) bool {
	return imprint.KindOf(err) == imprint.Internal || errors.Is(err, io.EOF)
}
