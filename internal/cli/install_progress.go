package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"imprint"
	"imprint/internal/install"
)

// installView shows an installation to whoever waits for it.
type installView interface {
	tell(install.Notice)
	close() // what is left is shown
}

// installView chooses what fits where the output goes.
func (p *program) installView() installView {
	switch {
	case p.output != asTable:
		return &jsonView{out: p.out}
	case isTerminal(p.err):
		return &barView{p: p}
	}
	return &lineView{p: p}
}

// goingEvery is how often one who reads lines is told how far a step is.
const goingEvery = 10 * time.Second

// jsonEvery is how often a program is told that.
const jsonEvery = 200 * time.Millisecond

// stepText is what a step is called while it is done, and then.
func stepText(s imprint.InstallStep) (going, done string) {
	switch s {
	case imprint.InstallFetched:
		return "fetching", "fetched"
	case imprint.InstallWritten:
		return "writing", "written"
	case imprint.InstallRepaired:
		return "changing", "repaired"
	case imprint.InstallPersonalized:
		return "personalizing", "personalized"
	case imprint.InstallScripts:
		return "running scripts", "scripts"
	}
	return string(s), string(s)
}

// percent is how far something is, "" if that is not known.
func percent(n install.Notice) string {
	if n.Total <= 0 {
		return ""
	}
	return fmt.Sprintf(" %d %%", n.Done*100/n.Total)
}

func took(n install.Notice) string {
	if n.Took < 0.05 {
		return ""
	}
	return fmt.Sprintf(" (%.1f s)", n.Took)
}

// line is a notice in one line.
func (p *program) installLine(n install.Notice) string {
	going, done := stepText(n.Step)
	switch n.State {
	case install.Begun:
		return fmt.Sprintf("%-14s %s", going, n.Text)
	case install.Going:
		return fmt.Sprintf("%-14s%s %s", going, percent(n), n.Text)
	case install.Skipped:
		return colour(p.err, dim, fmt.Sprintf("%-14s skipped: %s", done, n.Text))
	case install.Warning:
		return colour(p.err, yellow, fmt.Sprintf("%-14s note: %s", done, n.Text))
	}
	return colour(p.err, green, fmt.Sprintf("%-14s", done)) + " " + n.Text + took(n)
}

// lineView is for logs and pipes.
type lineView struct {
	p    *program
	last time.Time // when the present step was last spoken of
}

func (v *lineView) tell(n install.Notice) {
	now := time.Now()
	if n.State == install.Going && now.Sub(v.last) < goingEvery {
		return
	}
	v.last = now
	fmt.Fprintln(v.p.err, v.p.installLine(n))
}

func (v *lineView) close() {}

// jsonView is for programs: one notice a line.
type jsonView struct {
	out  io.Writer
	step imprint.InstallStep // of which it was said last that it goes on
	last time.Time
}

func (v *jsonView) tell(n install.Notice) {
	now := time.Now()
	if n.State == install.Going {
		if v.step == n.Step && now.Sub(v.last) < jsonEvery {
			return
		}
		v.step, v.last = n.Step, now
	}
	json.NewEncoder(v.out).Encode(n)
}

func (v *jsonView) close() {}

// barView is for people: a bar for the step that goes on, and a line for each that is done.
type barView struct {
	p    *program
	bars *mpb.Progress // of the bar
	mu   sync.Mutex    // of what follows: mpb asks for it while it draws
	bar  *mpb.Bar
	step imprint.InstallStep
	text string
}

func (v *barView) tell(n install.Notice) {
	switch n.State {
	case install.Begun:
		v.drop()
		v.begin(n)
	case install.Going:
		if v.bar == nil || v.step != n.Step {
			v.drop()
			v.begin(n)
		}
		if n.Total > 0 {
			v.bar.SetTotal(n.Total, false)
			v.bar.SetCurrent(n.Done)
		}
	default:
		v.drop()
		fmt.Fprintln(v.p.err, v.p.installLine(n))
	}
}

func (v *barView) begin(n install.Notice) {
	going, _ := stepText(n.Step)
	v.mu.Lock()
	v.step, v.text = n.Step, n.Text
	v.mu.Unlock()
	said := func(decor.Statistics) string {
		v.mu.Lock()
		defer v.mu.Unlock()
		return v.text
	}
	unit := decor.Any(func(s decor.Statistics) string {
		if s.Total <= 0 {
			return ""
		}
		return fmt.Sprintf("%3d %%", s.Current*100/s.Total)
	}, decor.WC{W: 6})
	v.bars = mpb.New(mpb.WithOutput(v.p.err), mpb.WithWidth(40), mpb.WithAutoRefresh())
	v.bar = v.bars.New(0, mpb.BarStyle(), mpb.BarRemoveOnComplete(),
		mpb.PrependDecorators(decor.Name(fmt.Sprintf("%-15s", going))),
		mpb.AppendDecorators(unit, decor.Elapsed(decor.ET_STYLE_GO, decor.WC{W: 6}), decor.Name(" "), decor.Any(said)))
}

// drop takes the bar away, and returns when nothing draws any more.
func (v *barView) drop() {
	if v.bar != nil {
		v.bar.Abort(true)
		v.bars.Wait()
		v.bar = nil
	}
}

func (v *barView) close() { v.drop() }
