package cli

import (
	"io"

	"github.com/spf13/cobra"

	"imprint"
	"imprint/internal/dialect"
	"imprint/internal/media"
)

// mediaFit is a dialect on a carrier, as "imprint media list" tells it.
type mediaFit struct {
	Dialect  string   `json:"dialect"`
	Carrier  string   `json:"carrier"`
	Label    string   `json:"label,omitempty"`
	Capacity int64    `json:"capacity"`
	Readers  []string `json:"readers"`
	Holds    []string `json:"holds"`
	Token    bool     `json:"token"`
	Summary  string   `json:"summary"`
}

func (p *program) mediaListCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "Show which dialect fits which carrier, who can read it, and what it may hold",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			var fits []mediaFit
			for _, d := range dialect.Drives() {
				for _, c := range media.Carriers() {
					if d.Fits(c.Form) {
						fits = append(fits, fitOf(d, c))
					}
				}
			}
			return p.print(fits, func(w io.Writer) {
				row(w, "DIALECT", "CARRIER", "LABEL", "CAPACITY", "READ BY", "MAY HOLD", "FOR")
				for _, f := range fits {
					holds := join(f.Holds)
					if f.Token {
						holds += ", token"
					}
					row(w, f.Dialect, f.Carrier, orNone(f.Label), f.Capacity, join(f.Readers), holds, f.Summary)
				}
			})
		},
	}
}

func fitOf(d dialect.Drive, c media.Carrier) mediaFit {
	readers := d.Readers | c.Readers
	f := mediaFit{Dialect: d.Name, Carrier: c.Name, Capacity: c.Capacity, Summary: d.Summary, Token: d.Payload && imprint.MayHoldToken(readers)}
	if c.Form == dialect.Volume {
		f.Label = d.Label
	}
	for _, r := range []struct {
		readers imprint.Readers
		name    string
	}{{imprint.GuestProcesses, "guest-processes"}, {imprint.GuestRoot, "guest-root"}, {imprint.PlatformAdmins, "platform-admins"}, {imprint.HostProcesses, "host-processes"}} {
		if readers&r.readers != 0 {
			f.Readers = append(f.Readers, r.name)
		}
	}
	for _, v := range []imprint.Visibility{imprint.Public, imprint.Private, imprint.SecretOnly} {
		if imprint.MayTravel(v, readers) {
			f.Holds = append(f.Holds, string(v))
		}
	}
	return f
}
