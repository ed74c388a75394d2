package cli

import (
	"io"
	"strings"

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
			return p.print(fits, func(w io.Writer) { tableOfFits(w, fits) })
		},
	}
}

// tableOfFits has a row for the carriers on which a dialect is alike, and what they
// are in rows of their own.
func tableOfFits(w io.Writer, fits []mediaFit) {
	carriers := map[string][]string{} // by the rest of their rows
	var rows []string
	for _, f := range fits {
		holds := join(f.Holds)
		if f.Token {
			holds += ", token"
		}
		rest := strings.Join([]string{orNone(f.Label), join(f.Readers), holds, f.Summary}, "\t")
		key := f.Dialect + "\t" + rest
		if carriers[key] == nil {
			rows = append(rows, key)
		}
		carriers[key] = append(carriers[key], f.Carrier)
	}
	row(w, "DIALECT", "CARRIER", "LABEL", "READ BY", "MAY HOLD", "FOR")
	for _, key := range rows {
		name, rest, _ := strings.Cut(key, "\t")
		row(w, name, join(carriers[key]), rest)
	}
	row(w, "")
	row(w, "CARRIER", "BYTES", "WHAT IT IS")
	for _, c := range media.Carriers() {
		row(w, c.Name, c.Capacity, c.Summary)
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
