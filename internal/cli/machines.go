package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"imprint"
	"imprint/api"
	"imprint/internal/manifest"
)

// sources is where the values of a manifest may come from on a command line.
func (p *program) sources() manifest.Sources {
	src := manifest.Sources{Env: os.LookupEnv, Stdin: p.in}
	if ask := p.asker(); ask != nil {
		src.Prompt = func(param string) (imprint.Secret, error) { return ask("Value of " + param) }
	}
	return src
}

// asker returns a function that asks for something on the terminal, without echo;
// nil if there is no terminal.
func (p *program) asker() func(what string) (imprint.Secret, error) {
	in, ok := p.in.(*os.File)
	if !ok || !term.IsTerminal(int(in.Fd())) {
		return nil
	}
	return func(what string) (imprint.Secret, error) {
		fmt.Fprintf(p.err, "%s (not shown): ", what)
		b, err := term.ReadPassword(int(in.Fd()))
		fmt.Fprintln(p.err)
		return imprint.NewSecret(b), err
	}
}

func (p *program) createCommand() *cobra.Command {
	var file, id string
	var dryRun bool
	c := &cobra.Command{
		Use:   "create -f FILE",
		Short: "Reserve the instances that a manifest declares",
		Long: `Reserve the instances that a manifest declares: their names, addresses,
parameters and how they may enrol. FILE is YAML, or - for standard input; the
fields are described in docs/reference/manifest.md.

Private and secret values come from a file, the environment, standard input or a
prompt, whatever the manifest says; none is needed on the command line.

A machine that has an identifier already, such as a server of Nova's, keeps it:
give it as "id" in the manifest, or with --id for a manifest of one instance. No
identifier is given twice, not even after its instance was deleted.`,
		Example: "  imprint create -f web-1.yaml\n  imprint create -f fleet.yaml --dry-run\n  imprint create -f web-1.yaml --id 7c9e6679-7425-40de-944b-e07fc1f90ae7",
		Args:    noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			manifests, err := manifest.Load(file, p.sources())
			if err != nil {
				return err
			}
			if c.Flags().Changed("id") {
				if err := identify(manifests, id); err != nil {
					return err
				}
			}
			client := p.client()
			defer client.Close()
			// All of them are checked before the first is created.
			for _, m := range manifests {
				if _, err := client.CreateAs(c.Context(), m.ID, m.Spec, m.Values, true); err != nil {
					return err
				}
			}
			created := make([]*api.Created, 0, len(manifests))
			for n, m := range manifests {
				one, err := client.CreateAs(c.Context(), m.ID, m.Spec, m.Values, dryRun)
				if err != nil {
					p.partly(n, len(manifests))
					return err
				}
				created = append(created, one)
				p.progress(n+1, len(manifests))
			}
			return p.print(created, func(w io.Writer) {
				for _, one := range created {
					verb := "reserved"
					if dryRun {
						verb = "would be reserved"
					}
					row(w, one.Instance.Ref, verb, one.Instance.ID, one.Instance.Spec.DNSNames)
				}
			})
		},
	}
	c.Flags().StringVarP(&file, "file", "f", "", "the manifest, or - for standard input")
	c.Flags().StringVar(&id, "id", "", "the instance's identifier, a `UUID`; in the place of the manifest's")
	c.Flags().BoolVar(&dryRun, "dry-run", false, "check everything, create nothing")
	c.MarkFlagRequired("file")
	c.MarkFlagFilename("file", "yaml", "yml")
	return c
}

// identify gives the only one of manifests this id.
func identify(manifests []manifest.Manifest, id string) error {
	if len(manifests) != 1 {
		return imprint.Errorf(imprint.Invalid, "use", "--id", "the manifest declares %d instances, and an id is of one", len(manifests)).
			WithHint("give each its id in the manifest")
	}
	manifests[0].ID = imprint.InstanceID(id)
	return imprint.CheckID("--id", id)
}

// manyInstances is how many it takes for progress to be of interest.
const manyInstances = 20

// progress shows people how far a long creation is.
func (p *program) progress(done, total int) {
	if total < manyInstances || !isTerminal(p.err) {
		return
	}
	fmt.Fprintf(p.err, "\r%d of %d", done, total)
	if done == total {
		fmt.Fprint(p.err, "\r\x1b[K")
	}
}

// partly says what an error left behind.
func (p *program) partly(done, total int) {
	if done > 0 {
		fmt.Fprintf(p.err, "%d of %d instances were created before this:\n", done, total)
	}
}

func (p *program) getCommand() *cobra.Command {
	var tenant, host string
	c := &cobra.Command{
		Use:   "get [NAME]",
		Short: "List instances, or show one",
		Long: `List instances, or show one. NAME is a name, tenant/name or an ID. With
"-o yaml", a single instance is printed as the manifest that would create it again.`,
		Args:              atMostOne,
		ValidArgsFunction: p.completeInstances,
		RunE: func(c *cobra.Command, args []string) error {
			client := p.client()
			defer client.Close()
			if len(args) == 1 {
				one, err := client.Get(c.Context(), args[0])
				if err != nil {
					return err
				}
				if p.output == asYAML {
					b, err := manifest.Marshal(one.Spec)
					if err == nil {
						_, err = p.out.Write(b)
					}
					return err
				}
				return p.print(one, func(w io.Writer) { p.instanceTable(w, *one) })
			}
			list := []api.Instance{}
			for one, err := range client.All(c.Context(), api.Query{Tenant: imprint.TenantName(tenant), Host: imprint.HostName(host)}) {
				if err != nil {
					return err
				}
				list = append(list, *one)
			}
			if len(list) == 0 && p.output == asTable {
				_, err := fmt.Fprintln(p.err, "No instances. Reserve one with: imprint create -f FILE")
				return err
			}
			return p.print(list, func(w io.Writer) { p.instanceTable(w, list...) })
		},
	}
	c.Flags().StringVar(&tenant, "tenant", "", "only this tenant's")
	c.Flags().StringVar(&host, "host", "", "only those placed on this host")
	return c
}

func (p *program) instanceTable(w io.Writer, list ...api.Instance) {
	row(w, "NAME", "GEN", "STATE", "TIER", "CERTIFICATE ENDS", "HOST", "ID")
	for _, i := range list {
		tier, ends := "-", "-"
		if i.Enrolment.Claim != nil {
			tier = fmt.Sprint(i.Enrolment.Claim.Tier)
		}
		if i.Enrolment.Certificate != nil {
			ends = i.Enrolment.Certificate.NotAfter.Local().Format(time.DateTime)
		}
		// Colours would confuse the column widths, so the state goes without.
		host := string(i.Spec.Host)
		if i.HostAway {
			host += " (not connected)"
		}
		row(w, i.Ref, i.Generation, i.Enrolment.State, tier, ends, host, i.ID)
	}
}

// completeInstances offers the instances' names to the shell.
func (p *program) completeInstances(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ctx, cancel := context.WithTimeout(c.Context(), time.Second)
	defer cancel()
	client := p.client()
	defer client.Close()
	var names []string
	for one, err := range client.All(ctx, api.Query{}) {
		if err != nil {
			break
		}
		names = append(names, one.Ref)
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// completeInstanceFlag is [program.completeInstances] for a flag, whatever the arguments are.
func (p *program) completeInstanceFlag(c *cobra.Command, _ []string, prefix string) ([]string, cobra.ShellCompDirective) {
	return p.completeInstances(c, nil, prefix)
}

// verbOnInstance is a command that does one thing to one instance and prints what became of it.
func (p *program) verbOnInstance(use, short, long, done string, do func(context.Context, *api.Client, string) (*api.Instance, error)) *cobra.Command {
	return &cobra.Command{
		Use: use + " NAME", Short: short, Long: long,
		Args:              exactArgs("an instance"),
		ValidArgsFunction: p.completeInstances,
		RunE: func(c *cobra.Command, args []string) error {
			client := p.client()
			defer client.Close()
			one, err := do(c.Context(), client, args[0])
			if err != nil {
				return err
			}
			return p.print(one, func(w io.Writer) {
				fmt.Fprintf(w, "%s %s: generation %d is %s\n", one.Ref, done, one.Generation, one.Enrolment.State)
			})
		},
	}
}

func (p *program) approveCommand() *cobra.Command {
	return p.verbOnInstance("approve", "Let an instance that waits for approval have its certificate",
		`Let an instance have its certificate. "imprint describe NAME" shows the key that
waits; compare its fingerprint with what the machine shows on its console.`, "approved",
		func(ctx context.Context, c *api.Client, ref string) (*api.Instance, error) {
			return c.Approve(ctx, ref)
		})
}

func (p *program) revokeCommand() *cobra.Command {
	var reason string
	c := p.verbOnInstance("revoke", "Revoke an instance's certificate",
		`Revoke an instance's certificate and refuse whatever its key asks for. The
instance stays; "imprint rebirth" gives it a new life.`, "revoked",
		func(ctx context.Context, c *api.Client, ref string) (*api.Instance, error) {
			return c.Revoke(ctx, ref, reason)
		})
	c.Flags().StringVar(&reason, "reason", "", "why, for the timeline")
	return c
}

func (p *program) deleteCommand() *cobra.Command {
	var yes bool
	c := &cobra.Command{
		Use:   "delete NAME...",
		Short: "Delete instances and revoke their certificates",
		Long: `Delete instances: names, parameters and timelines go, certificates are revoked.
Without --yes it only says what it would do. What was issued stays in the
issuance log.`,
		Args:              oneOrMore("an instance"),
		ValidArgsFunction: p.completeInstances,
		RunE: func(c *cobra.Command, args []string) error {
			client := p.client()
			defer client.Close()
			// All of them must exist before the first goes.
			var list []*api.Instance
			for _, ref := range args {
				one, err := client.Get(c.Context(), ref)
				if err != nil {
					return err
				}
				list = append(list, one)
			}
			for _, one := range list {
				if !yes {
					fmt.Fprintf(p.out, "would delete %s (%s), generation %d, %s\n", one.Ref, one.ID, one.Generation, one.Enrolment.State)
					continue
				}
				if err := client.Delete(c.Context(), string(one.ID)); err != nil {
					return err
				}
				fmt.Fprintf(p.out, "%s deleted\n", one.Ref)
			}
			if !yes {
				fmt.Fprintln(p.err, "Nothing was deleted. Repeat with --yes to do it.")
			}
			return nil
		},
	}
	c.Flags().BoolVar(&yes, "yes", false, "really delete")
	return c
}
