package cli

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/spf13/cobra"

	"imprint"
	"imprint/api"
)

// states in which "watch --until" stops without success.
var sideExits = map[imprint.State]imprint.Kind{
	imprint.Expired: imprint.Conflict, imprint.InDispute: imprint.Contested, imprint.Revoked: imprint.Conflict,
}

func (p *program) watchCommand() *cobra.Command {
	var tenant, until string
	c := &cobra.Command{
		Use:   "watch [NAME]",
		Short: "Show what happens, as it happens",
		Long: `Show the timeline of one instance, or of all, as it happens. With --until it
ends as soon as the instance has reached that state, or fails once it cannot any more.`,
		Example:           "  imprint watch\n  imprint watch web-1 --until confirmed",
		Args:              cobra.MaximumNArgs(1),
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
			w := &watcher{program: p, names: map[imprint.InstanceID]string{}, until: imprint.State(until)}
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
	state imprint.State
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

// order is how far each state is along a life.
var order = map[imprint.State]int{
	imprint.Reserved: 1, imprint.Delivered: 2, imprint.Claimed: 3, imprint.Issued: 4, imprint.Confirmed: 5, imprint.Closed: 6,
}

func (w *watcher) reached() (bool, error) {
	if w.until == "" || w.state == "" {
		return false, nil
	}
	if kind, out := sideExits[w.state]; out {
		return true, imprint.Errorf(kind, "watch", string(w.state), "it will not become %s any more", w.until).
			WithHint("imprint describe tells why; imprint rebirth starts anew")
	}
	return order[w.state] >= order[w.until], nil
}

func (w *watcher) instance(i *api.Instance) {
	w.names[i.ID] = i.Ref
	w.state = i.Enrolment.State
}

func (w *watcher) name(id imprint.InstanceID) string {
	if name := w.names[id]; name != "" {
		return name
	}
	return string(id)
}

func (w *watcher) event(e *imprint.Event) {
	if w.seen == nil {
		w.seen = map[imprint.InstanceID]uint64{}
	}
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
	case imprint.EventRefused, imprint.EventContested, imprint.EventRevoked, imprint.EventExpired:
		code = red
	case imprint.EventWaiting:
		code = yellow
	}
	over := ""
	if e.Channel != "" {
		over = "over " + string(e.Channel) + " "
	}
	fmt.Fprintf(w.out, "%s  %s/%d  %s %s%s\n", e.At.Local().Format("15:04:05.000"), w.name(e.Instance), e.Generation,
		colour(w.out, code, fmt.Sprintf("%-10s", e.Kind)), over, detail(e.Detail))
}
