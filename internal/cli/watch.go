package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"

	"github.com/spf13/cobra"

	"imprint"
	"imprint/api"
)

func (p *program) watchCommand() *cobra.Command {
	var tenant, until string
	c := &cobra.Command{
		Use:   "watch [NAME]",
		Short: "Show what happens, as it happens",
		Long: `Show the timeline of one instance, or of all, as it happens. With --until it
ends as soon as the instance has reached that state, or fails once it cannot any more.`,
		Example:           "  imprint watch\n  imprint watch web-1 --until confirmed",
		Args:              atMostOne,
		ValidArgsFunction: p.completeInstances,
		RunE: func(c *cobra.Command, args []string) error {
			scope := api.Scope{Tenant: imprint.TenantName(tenant)}
			if len(args) == 1 {
				scope = api.Scope{Instance: args[0]}
			} else if until != "" {
				return usagef(c, "--until needs an instance")
			}
			client := p.client()
			defer client.Close()
			w := &watcher{program: p, names: map[imprint.InstanceID]string{}, seen: map[imprint.InstanceID]uint64{}, until: imprint.State(until)}
			if until != "" && progress(w.until) == 0 {
				return usagef(c, "--until %q is none of delivered, claimed, issued, confirmed, closed", until)
			}
			if scope.Instance != "" {
				// What happened before the watch began belongs to the story.
				d, err := client.Describe(c.Context(), scope.Instance)
				if err != nil {
					return err
				}
				w.instance(&d.Instance)
				for _, e := range d.Timeline {
					w.event(&e)
				}
			}
			return w.follow(c.Context(), client, scope)
		},
	}
	c.Flags().StringVar(&tenant, "tenant", "", "only this tenant's")
	c.Flags().StringVar(&until, "until", "", "end when the instance is in this `state`: delivered, claimed, issued, confirmed, closed")
	c.RegisterFlagCompletionFunc("until", cobra.FixedCompletions([]string{"delivered", "claimed", "issued", "confirmed", "closed"}, cobra.ShellCompDirectiveNoFileComp))
	return c
}

// watcher prints notices.
type watcher struct {
	*program
	names map[imprint.InstanceID]string
	seen  map[imprint.InstanceID]uint64 // the last event printed
	until imprint.State
	last  *api.Instance // as it is now
}

func (w *watcher) follow(ctx context.Context, client *api.Client, scope api.Scope) error {
	for n, err := range client.Watch(ctx, scope, 0) {
		switch {
		case err != nil:
			return err
		case n.Instance != nil:
			w.instance(n.Instance)
		case n.Event != nil:
			w.event(n.Event)
		case n.Deleted != "":
			fmt.Fprintf(w.out, "%s deleted\n", w.name(n.Deleted))
			if scope.Instance != "" {
				return nil
			}
		}
		if done, err := w.reached(); done {
			return err
		}
	}
	return context.Cause(ctx)
}

// progress is how far along its life a state is; 0 for side exits.
func progress(s imprint.State) int {
	return 1 + slices.Index([]imprint.State{imprint.Reserved, imprint.Delivered, imprint.Claimed,
		imprint.Issued, imprint.Confirmed, imprint.Closed}, s)
}

// reached reports whether the instance is where --until waits for it, or never
// will be. It is told only after the event that led there was printed.
func (w *watcher) reached() (bool, error) {
	if w.until == "" || w.last == nil || w.seen[w.last.ID] < w.last.Events {
		return false, nil
	}
	state := w.last.Enrolment.State
	if !state.Open() {
		kind := imprint.Conflict
		if state == imprint.InDispute {
			kind = imprint.Contested
		}
		return true, imprint.Errorf(kind, "watch", w.last.Ref, "it is %s and will not become %s", state, w.until).
			WithHint("imprint describe %s tells why; imprint rebirth %s starts anew", w.last.Ref, w.last.Ref)
	}
	return progress(state) >= progress(w.until), nil
}

func (w *watcher) instance(i *api.Instance) {
	w.names[i.ID] = i.Ref
	w.last = i
}

func (w *watcher) name(id imprint.InstanceID) string {
	if name := w.names[id]; name != "" {
		return name
	}
	return string(id)
}

func (w *watcher) event(e *imprint.Event) {
	if e.Seq <= w.seen[e.Instance] {
		return // both on the timeline that was read first and in the watch
	}
	w.seen[e.Instance] = e.Seq
	if w.output != asTable {
		json.NewEncoder(w.out).Encode(e)
		return
	}
	code := green
	switch e.Kind {
	case imprint.EventInstall:
		if e.Detail["step"] == string(imprint.InstallFailed) {
			code = red
		}
	case imprint.EventRefused, imprint.EventContested, imprint.EventRevoked, imprint.EventExpired, imprint.EventLeft:
		code = red
	case imprint.EventWaiting:
		code = yellow
	}
	over := ""
	if e.Channel != "" {
		over = "over " + string(e.Channel) + " "
	}
	fmt.Fprintf(w.out, "%s  %s/%d  %s %s%s\n", e.At.Local().Format("15:04:05.000"), w.name(e.Instance), e.Generation,
		colour(w.out, code, fmt.Sprintf("%-10s", e.Kind)), over, short(detail(e.Detail)))
}

// short cuts digests to what people compare.
func short(s string) string {
	return regexp.MustCompile(`\b([0-9a-f]{16})[0-9a-f]{16,}`).ReplaceAllString(s, "$1…")
}
