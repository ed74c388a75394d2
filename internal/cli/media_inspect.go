package cli

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"

	"github.com/spf13/cobra"

	"imprint"
	"imprint/internal/dialect"
	"imprint/internal/media"
)

// mediumReport is what "imprint media inspect" tells.
type mediumReport struct {
	Format  string         `json:"format"`
	Table   media.Table    `json:"table"`
	Start   int64          `json:"start"`
	Label   string         `json:"label,omitempty"`
	Second  string         `json:"secondLabel,omitempty"`
	Names   string         `json:"names"`
	Digest  imprint.Digest `json:"digest"` // of all files, as on an instance's record
	Payload *mediumPayload `json:"payload,omitempty"`
	Files   []mediumFile   `json:"files"`
}

type mediumFile struct {
	Path   string         `json:"path"`
	Size   int            `json:"size"`
	Digest imprint.Digest `json:"sha256"`
}

// mediumPayload is a payload without what it has of a credential.
type mediumPayload struct {
	Path       string               `json:"path"`
	Instance   imprint.InstanceID   `json:"instance"`
	Generation imprint.Generation   `json:"generation"`
	Tenant     imprint.TenantName   `json:"tenant"`
	Name       imprint.InstanceName `json:"name"`
	CheckIn    []string             `json:"checkIn,omitempty"`
	Token      bool                 `json:"token"`
	Digest     imprint.Digest       `json:"sha256"`
}

func (p *program) mediaInspectCommand() *cobra.Command {
	var print, label string
	c := &cobra.Command{
		Use:   "inspect FILE",
		Short: "Show what is on a medium, whoever wrote it",
		Long: `Show what is on a medium, whoever wrote it: ISO 9660, FAT, alone or in the first
partition that has a file system, the cpio archive at the end of an initial RAM disk, an
SMBIOS structure, or a directory.
A payload is described without its one-time token, but --print shows a file as it is.`,
		Args: exactArgs("a file"),
		RunE: func(_ *cobra.Command, args []string) error {
			c, err := inspectMedium(args[0], label)
			if err != nil {
				return err
			}
			if print != "" {
				b, ok := c.Files[print]
				if !ok {
					return imprint.Errorf(imprint.NotFound, "inspect", args[0], "it has no file %s", print).
						WithHint("without --print they are listed")
				}
				_, err := p.out.Write(b)
				return err
			}
			r := reportOf(c)
			return p.print(r, func(w io.Writer) { r.table(w) })
		},
	}
	c.Flags().StringVar(&label, "label", "", "show the partition that is called so, instead of the first")
	c.Flags().StringVar(&print, "print", "", "print this `path`'s content, and nothing else")
	return c
}

// inspectMedium reads what is at path: a file, a block device or a directory.
func inspectMedium(path, label string) (*media.Contents, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fileError("inspect", path, err)
	}
	defer f.Close()
	var c *media.Contents
	if info, failed := f.Stat(); failed == nil && info.IsDir() {
		if label != "" {
			return nil, imprint.Errorf(imprint.Invalid, "inspect", path, "it is a directory, and has no file systems with labels")
		}
		root, failed := os.OpenRoot(path)
		if failed != nil {
			return nil, fileError("inspect", path, failed)
		}
		defer root.Close()
		c, err = media.InspectDir(root.FS())
	} else {
		size, failed := f.Seek(0, io.SeekEnd) // of a block device too
		if failed != nil {
			return nil, fileError("inspect", path, failed)
		}
		if label == "" {
			return inspectOpened(f, size, path)
		}
		c, err = media.InspectLabelled(f, size, label)
	}
	return c, inspectError(path, err)
}

// inspectOpened is [media.Inspect] of what the user calls name.
func inspectOpened(r io.ReaderAt, size int64, name string) (*media.Contents, error) {
	c, err := media.Inspect(r, size)
	return c, inspectError(name, err)
}

// inspectError has the user's name for what was inspected.
func inspectError(name string, err error) error {
	var e *imprint.Error
	if errors.As(err, &e) {
		return imprint.Errorf(e.Kind, "inspect", name, "%w", e.Err)
	}
	return err
}

func reportOf(c *media.Contents) *mediumReport {
	r := &mediumReport{Format: c.Format, Table: c.Table, Start: c.Start, Label: c.Label, Second: c.Second, Names: c.Names, Digest: c.Digest(), Files: []mediumFile{}}
	for _, path := range slices.Sorted(maps.Keys(c.Files)) {
		b := c.Files[path]
		r.Files = append(r.Files, mediumFile{path, len(b), imprint.DigestOf(b)})
		payload := dialect.PayloadIn(b)
		if p, err := imprint.DecodePayload(payload); err == nil && r.Payload == nil {
			r.Payload = &mediumPayload{path, p.Instance, p.Generation, p.Tenant, p.Name, p.CheckIn, p.Token != "", imprint.DigestOf(payload)}
		}
	}
	return r
}

// table prints the report. Names on a medium may be anybody's.
func (r *mediumReport) table(w io.Writer) {
	where := "the whole medium"
	if r.Table != media.NoTable {
		where = fmt.Sprintf("a partition at %d, table %s", r.Start, r.Table)
	} else if r.Start > 0 {
		where = fmt.Sprintf("from byte %d on", r.Start)
	}
	row(w, "Format", r.Format+", "+where)
	if r.Label != "" || r.Second != "" {
		row(w, "Label", orNone(string(harmless([]byte(r.Label)))))
		row(w, "Second label", orNone(string(harmless([]byte(r.Second)))))
	}
	row(w, "Names", r.Names)
	row(w, "Digest", r.Digest)
	if p := r.Payload; p != nil {
		token := "no token"
		if p.Token {
			token = "a one-time token"
		}
		row(w, "Payload", fmt.Sprintf("%s/%s, %s, generation %d, %s", p.Tenant, p.Name, p.Instance, p.Generation, token))
		row(w, "Payload digest", "sha256:"+string(p.Digest))
	}
	row(w, "")
	row(w, "SIZE", "SHA-256", "FILE")
	for _, f := range r.Files {
		row(w, f.Size, f.Digest, string(harmless([]byte(f.Path))))
	}
}
