package cli

import (
	"encoding/pem"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"imprint"
	"imprint/api"
	"imprint/internal/durable"
)

func (p *program) caCommand() *cobra.Command {
	var tenant string
	c := group(&cobra.Command{
		Use:   "ca",
		Short: "Show a tenant's certificate authority, and take its root key offline",
	})
	c.PersistentFlags().StringVar(&tenant, "tenant", string(imprint.DefaultTenant), "whose authority")
	name := func() imprint.TenantName { return imprint.TenantName(tenant) }
	c.AddCommand(
		&cobra.Command{
			Use: "show", Short: "Show the root, the issuing CA and what they may certify", Args: noArgs,
			RunE: func(c *cobra.Command, _ []string) error {
				client := p.client()
				defer client.Close()
				a, err := client.Authority(c.Context(), name())
				if err != nil {
					return err
				}
				return p.print(a, func(w io.Writer) { showAuthority(w, a) })
			},
		},
		&cobra.Command{
			Use: "bundle", Short: "Print the certificates to trust, in PEM, the root first", Args: noArgs,
			RunE: func(c *cobra.Command, _ []string) error {
				client := p.client()
				defer client.Close()
				b, err := client.Bundle(c.Context(), name())
				if err != nil {
					return err
				}
				_, err = p.out.Write(b)
				return err
			},
		},
		&cobra.Command{
			Use: "crl", Short: "Print the revocation list, in PEM", Args: noArgs,
			RunE: func(c *cobra.Command, _ []string) error {
				client := p.client()
				defer client.Close()
				der, err := client.CRL(c.Context(), name())
				if err != nil {
					return err
				}
				return pem.Encode(p.out, &pem.Block{Type: "X509 CRL", Bytes: der})
			},
		},
		p.exportRootCommand(name),
		p.reissueCommand(name),
	)
	return c
}

func showAuthority(w io.Writer, a *api.Authority) {
	row(w, "Tenant", a.Tenant)
	row(w, "May certify", join(a.Domains, a.Networks))
	row(w, "Check-in name", orNone(a.CheckIn))
	for _, c := range []struct {
		label string
		cert  api.CACertificate
	}{{"Root", a.Root}, {"Issuing CA", a.Issuing}} {
		row(w, c.label, c.cert.Subject)
		row(w, "  serial", c.cert.Serial)
		row(w, "  valid", when(c.cert.NotBefore)+" to "+when(c.cert.NotAfter))
		row(w, "  sha256", c.cert.Fingerprint)
	}
	where := "offline"
	if a.RootKeyHere {
		where = "on the server, sealed; take it offline with: imprint ca export-root"
	}
	row(w, "Root key", where)
	row(w, "SSH host CA", orNone(a.SSH))
}

func (p *program) exportRootCommand(tenant func() imprint.TenantName) *cobra.Command {
	var out string
	var keep bool
	c := &cobra.Command{
		Use:   "export-root --out FILE",
		Short: "Take the root key offline: write it to a file and remove it from the server",
		Long: `Write the root key to FILE (PKCS #8 PEM, mode 0600) and, once it is safely
there, remove it from the server, which goes on with the issuing key alone. The
root key is needed again only to change the tenant's names or to renew the
issuing CA. Put FILE on a medium of its own and lock it away.`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			client := p.client()
			defer client.Close()
			// The file comes first: a path that cannot be written must not cost the key.
			f, err := durable.Create(out, 0o600)
			if err != nil {
				return fileError("write", out, err).WithHint("name a file that does not exist yet, in a directory that you may write")
			}
			defer f.Discard()
			key, err := client.ExportRoot(c.Context(), tenant())
			if err != nil {
				return err
			}
			if err := commit(f, key.Reveal()); err != nil {
				return fileError("write", out, err)
			}
			if keep {
				fmt.Fprintf(p.out, "root key of tenant %s written to %s; the server still has it\n", tenant(), out)
				return nil
			}
			if err := client.DropRoot(c.Context(), tenant()); err != nil {
				return err
			}
			fmt.Fprintf(p.out, "root key of tenant %s written to %s and removed from the server\n", tenant(), out)
			fmt.Fprintln(p.err, "Old copies in the store's files open until the sealing key changes: imprint seal rotate")
			return nil
		},
	}
	c.Flags().StringVar(&out, "out", "", "the `file` to write; it must not exist")
	c.Flags().BoolVar(&keep, "keep", false, "leave the key on the server as well")
	c.MarkFlagRequired("out")
	return c
}

// commit writes the whole content of f and returns once it is durable.
func commit(f *durable.File, content []byte) error {
	if _, err := f.Write(content); err != nil {
		return err
	}
	return f.Commit()
}

func (p *program) reissueCommand(tenant func() imprint.TenantName) *cobra.Command {
	var file string
	c := &cobra.Command{
		Use:   "reissue [--root-key FILE]",
		Short: "Certify the issuing CA anew under the root",
		Long: `Certify the issuing CA anew, because it nears its end. With the root key offline,
bring it with --root-key; it is used once and not kept.

When a tenant's names change in the server's configuration, the server does this by
itself as it starts, or with "imprint serve --root-key" if the key is offline.`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			var key imprint.Secret
			if file != "" {
				b, err := os.ReadFile(file)
				if err != nil {
					return fileError("read", file, err)
				}
				key = imprint.NewSecret(b)
			}
			client := p.client()
			defer client.Close()
			a, err := client.Reissue(c.Context(), tenant(), key)
			if err != nil {
				return err
			}
			return p.print(a, func(w io.Writer) { showAuthority(w, a) })
		},
	}
	c.Flags().StringVar(&file, "root-key", "", "the exported root key")
	c.MarkFlagFilename("root-key")
	return c
}
