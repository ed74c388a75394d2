package cli

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"imprint"
	"imprint/internal/ca"
	"imprint/internal/daemon"
)

// Limits on a copy of the log that a server sends.
const (
	maxLogFile  = 64 << 20
	maxLogFiles = 10 << 20
)

func (p *program) logCommand() *cobra.Command {
	c := group(&cobra.Command{
		Use:   "log",
		Short: "Copy and verify the issuance log",
	})
	c.AddCommand(p.logCopyCommand(), p.logVerifyCommand(), p.logListCommand())
	return c
}

// keyFileOf is where "log copy" puts the verifier key of the copy in dir.
func keyFileOf(dir string) string { return filepath.Clean(dir) + ".key" }

func (p *program) logCopyCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "copy DIR",
		Short: "Copy the server's issuance log into a directory",
		Long: `Copy the server's issuance log into DIR, and its verifier key into DIR.key.
The log proves that it was not changed only to whoever kept the key, or an older
copy, somewhere else.`,
		Args: exactArgs("a directory that does not exist yet"),
		RunE: func(c *cobra.Command, args []string) error {
			if err := p.copyLog(c.Context(), args[0]); err != nil {
				return err
			}
			fmt.Fprintf(p.out, "copied to %s; verifier key in %s\n", args[0], keyFileOf(args[0]))
			return nil
		},
	}
}

func (p *program) copyLog(ctx context.Context, dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return fileError("copy to", dir, err).WithHint("name a directory that does not exist yet")
	}
	client := p.client()
	defer client.Close()
	r, w := io.Pipe()
	go func() { w.CloseWithError(client.Log(ctx, w)) }()
	defer r.Close()
	return unpackLog(r, dir)
}

func unpackLog(r io.Reader, dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fileError("copy to", dir, err)
	}
	defer root.Close()
	archive := tar.NewReader(r)
	for range maxLogFiles {
		h, err := archive.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return imprint.Errorf(imprint.Unavailable, "copy", "log", "%w", err)
		}
		if h.Typeflag != tar.TypeReg || h.Size > maxLogFile {
			return imprint.Errorf(imprint.Invalid, "copy", h.Name, "not a file that a log has")
		}
		if err := unpackFile(root, dir, h.Name, archive); err != nil {
			return fileError("write", h.Name, err)
		}
	}
	return imprint.Errorf(imprint.Exhausted, "copy", "log", "more than %d files", maxLogFiles)
}

func unpackFile(root *os.Root, dir, name string, content io.Reader) error {
	var f *os.File
	err := root.MkdirAll(filepath.Dir(name), 0o700)
	if name == daemon.VerifierFile {
		f, err = os.OpenFile(keyFileOf(dir), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	} else if err == nil {
		f, err = root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	}
	if err != nil {
		return err
	}
	_, err = io.Copy(f, content)
	return errors.Join(err, f.Close())
}

func (p *program) logVerifyCommand() *cobra.Command {
	var key string
	var atLeast uint64
	c := &cobra.Command{
		Use:   "verify [DIR]",
		Short: "Check that no entry of the issuance log was changed or lost",
		Long: `Check a copy of the issuance log: the checkpoint's signature, every entry and
every hash, and that each entry describes the certificate in it. It works offline on
a copy; without DIR it copies the server's log first and deletes the copy afterwards.

--key is the verifier key, or a file that holds it; by default DIR.key, which "log
copy" wrote. Keep the key and the number of entries elsewhere: with --at-least, a log
that was cut back to an older state shows as well.`,
		Args: atMostOne,
		RunE: func(c *cobra.Command, args []string) error {
			dir := ""
			if len(args) == 1 {
				dir = args[0]
			} else {
				tmp, err := os.MkdirTemp("", "imprint-log-")
				if err != nil {
					return fileError("copy log to", os.TempDir(), err)
				}
				defer os.RemoveAll(tmp)
				dir = filepath.Join(tmp, "log")
				if err := p.copyLog(c.Context(), dir); err != nil {
					return err
				}
			}
			verifier, err := verifierKey(key, dir)
			if err != nil {
				return err
			}
			report, err := ca.VerifyLog(os.DirFS(dir), verifier, ca.VerifyOptions{AtLeast: atLeast, Live: len(args) == 0})
			if err != nil {
				return err
			}
			return p.print(report, func(w io.Writer) {
				row(w, "log", report.Origin)
				row(w, "entries", report.Size)
				row(w, "root", fmt.Sprintf("%x", report.Root))
				if report.Unsigned > 0 {
					row(w, "not yet signed", report.Unsigned)
				}
				if l := report.Last; l != nil {
					row(w, "last entry", fmt.Sprintf("%s %s, serial %s, %s", l.Kind, l.Name, l.Serial, when(l.At)))
				}
				row(w, "result", colour(p.out, green, "every entry is as it was signed"))
			})
		},
	}
	c.Flags().StringVar(&key, "key", "", "the verifier key, or a file that holds it")
	c.Flags().Uint64Var(&atLeast, "at-least", 0, "how many entries the log is known to have")
	return c
}

func verifierKey(key, dir string) (string, error) {
	if key == "" {
		key = keyFileOf(dir)
	}
	b, err := os.ReadFile(key)
	switch {
	case err == nil:
		return strings.TrimSpace(string(b)), nil
	case strings.Contains(key, "+"):
		return key, nil // the key itself: name+hash+base64
	case errors.Is(err, fs.ErrNotExist):
		return "", imprint.Errorf(imprint.NotFound, "read", key, "there is no verifier key").
			WithHint("give it with --key; the server's is in what \"imprint log copy\" writes")
	}
	return "", fileError("read", key, err)
}

func (p *program) logListCommand() *cobra.Command {
	var serial, name string
	c := &cobra.Command{
		Use:   "list DIR",
		Short: "List the entries of a copy of the issuance log",
		Args:  exactArgs("a directory that \"imprint log copy\" wrote"),
		RunE: func(c *cobra.Command, args []string) error {
			list := []ca.LoggedEntry{}
			for e, err := range ca.Entries(os.DirFS(args[0]), 0) {
				if err != nil {
					return err
				}
				if (serial == "" || string(e.Serial) == serial) && (name == "" || string(e.Name) == name || string(e.Instance) == name) {
					list = append(list, e)
				}
			}
			return p.print(list, func(w io.Writer) {
				row(w, "ENTRY", "TIME", "KIND", "NAME", "GEN", "TIER", "SERIAL", "KEY")
				for _, e := range list {
					row(w, e.Index, when(e.At), e.Kind, orNone(string(e.Name)), e.Generation, e.Tier, e.Serial, e.Key[:16])
				}
			})
		},
	}
	c.Flags().StringVar(&serial, "serial", "", "only this certificate")
	c.Flags().StringVar(&name, "name", "", "only this instance's, by name or ID")
	return c
}
