package cli

import (
	"context"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"imprint"
	"imprint/internal/image"
	"imprint/internal/image/reader"
)

// imageCommand is the group of verbs about images to install from.
func (p *program) imageCommand() *cobra.Command {
	c := group(&cobra.Command{
		Use:   "image",
		Short: "Look at images to install from, and at the cache that keeps them",
	})
	c.AddCommand(p.imageInspectCommand(), p.imageFetchCommand(), p.imageListCommand(), p.imagePruneCommand())
	return c
}

// imageOptions say which image, and by what it is known.
type imageOptions struct {
	imprint.Image
	key, ca, credentials string // files
	cache                string
}

func (o *imageOptions) flags(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&o.Sum, "sum", "", "the `sum` that the file has to have, sha256: or sha512: and hexadecimal digits")
	f.StringVar(&o.Sums, "sums", "", "`URL` or file of a list of sums that has it, such as SHA256SUMS")
	f.StringVar(&o.Signature, "signature", "", "`URL` or file of the signature of that list, or of the image")
	f.StringVar(&o.key, "key", "", "`file` with the only public key that counts: OpenPGP in ASCII armour, or minisign")
	f.StringVar(&o.ca, "ca", "", "`file` with the certificates that https is trusted by, in the place of the system's")
	f.StringVar(&o.credentials, "credentials", "", "`file` with user:password for HTTP basic authentication")
	f.StringVar(&o.Format, "format", "", "refuse it unless it is raw, qcow2 or vmdk")
	c.RegisterFlagCompletionFunc("format", cobra.FixedCompletions([]string{"raw", "qcow2", "vmdk"}, cobra.ShellCompDirectiveNoFileComp))
	for _, name := range []string{"sums", "signature", "key", "ca", "credentials"} {
		c.MarkFlagFilename(name)
	}
	o.cacheFlag(c)
}

func (o *imageOptions) cacheFlag(c *cobra.Command) {
	c.Flags().StringVar(&o.cache, "cache", imageCache(), "`directory` in which images are kept that came over a network")
	c.MarkFlagDirname("cache")
}

// imageCache is where images are kept that came over a network.
func imageCache() string {
	if os.Geteuid() == 0 {
		return "/var/cache/imprint/images"
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		dir = os.TempDir()
	}
	return filepath.Join(dir, "imprint", "images")
}

// open gets the image, and makes sure that it is the right one.
func (p *program) openImage(ctx context.Context, o *imageOptions, source string) (*image.Source, imprint.Digest, error) {
	m := o.Image
	m.Source = source
	var credentials imprint.Secret
	for path, to := range map[string]func(b []byte){
		o.key:         func(b []byte) { m.Key = string(b) },
		o.ca:          func(b []byte) { m.CA = string(b) },
		o.credentials: func(b []byte) { credentials = imprint.NewSecret([]byte(strings.TrimRight(string(b), "\r\n"))) },
	} {
		if path == "" {
			continue
		}
		b, err := readFile(path, imprint.MaxKeyText)
		if err != nil {
			return nil, "", err
		}
		to(b)
	}
	if m.Signature != "" && m.Key == "" {
		return nil, "", imprint.Errorf(imprint.Invalid, "verify", "signature", "no key is given with which it is checked").WithHint("name the signer's public key with --key")
	}
	if m.Key != "" && m.Signature == "" && m.Sums == "" {
		return nil, "", imprint.Errorf(imprint.Invalid, "verify", "key", "nothing is signed with it").WithHint("say with --signature where the signature is")
	}
	if u, err := url.Parse(source); err == nil && u.Scheme == "http" && u.User == nil && m.Sum == "" && m.Key == "" {
		return nil, "", imprint.Errorf(imprint.Invalid, "fetch", shownSource(source), "it comes over plain HTTP, where whoever is on the way could change it").
			WithHint("give --sum, or --key with a signature, or use https")
	}
	s, err := image.NewStore(image.Config{Cache: o.cache}).Open(ctx, m, image.OpenOptions{Credentials: credentials, Progress: p.transfer("fetched")})
	if err != nil {
		return nil, "", err
	}
	digest, err := s.Check(ctx, p.transfer("checked"))
	if err != nil {
		s.Close()
		return nil, "", err
	}
	return s, digest, nil
}

// transfer shows people how far something is; nil if nobody looks.
func (p *program) transfer(what string) func(done, total int64) {
	if !isTerminal(p.err) {
		return nil
	}
	var last time.Time
	return func(done, total int64) {
		if now := time.Now(); done != total && now.Sub(last) < 100*time.Millisecond {
			return
		} else {
			last = now
		}
		of := ""
		if total > 0 {
			of = " of " + image.Bytes(total)
		}
		fmt.Fprintf(p.err, "\r%s %s%s\x1b[K", what, image.Bytes(done), of)
		if done == total {
			fmt.Fprint(p.err, "\r\x1b[K")
		}
	}
}

// imageView is what is known of an image.
type imageView struct {
	Source   string         `json:"source"`
	Format   string         `json:"format"`
	FileSize int64          `json:"fileSize"`
	DiskSize int64          `json:"diskSize,omitempty"` // 0 is not known
	Digest   imprint.Digest `json:"digest"`
	Verified []string       `json:"verified"` // by what
}

func (p *program) imageInspectCommand() *cobra.Command {
	var o imageOptions
	c := &cobra.Command{
		Use:   "inspect SOURCE",
		Short: "Show what an image is, how large a disk it needs, and whether it is the right one",
		Long: `Show what the image at SOURCE is: a file, or a URL of http or https, from where it is
fetched into the cache. Everything is checked that "imprint install" checks before it
touches a disk: the format, the size of the disk, that no other file is needed, the sum
and the signature.`,
		Example: "  imprint image inspect debian-13.qcow2\n" +
			"  imprint image inspect https://images.example/debian-13.qcow2 --sums https://images.example/SHA512SUMS --key debian.asc --signature https://images.example/SHA512SUMS.sign",
		Args: exactArgs("an image"),
		RunE: func(c *cobra.Command, args []string) error {
			s, digest, err := p.openImage(c.Context(), &o, args[0])
			if err != nil {
				return err
			}
			defer s.Close()
			v := imageView{Source: s.Origin, Format: s.Format.String(), FileSize: s.FileSize, Digest: digest, Verified: o.verified()}
			if v.DiskSize, err = s.Measure(c.Context(), reader.MaxDisk); err != nil {
				return err
			}
			return p.print(v, func(w io.Writer) {
				row(w, "Source", v.Source)
				row(w, "Format", v.Format)
				row(w, "File", image.Bytes(v.FileSize))
				row(w, "Disk", image.Bytes(v.DiskSize))
				row(w, "SHA-256", v.Digest)
				row(w, "Verified by", orNone(join(v.Verified)))
			})
		},
	}
	o.flags(c)
	return c
}

// verified says what vouches for an image that was opened.
func (o *imageOptions) verified() []string {
	by := []string{}
	if o.Sum != "" {
		by = append(by, "sum")
	}
	if o.Sums != "" {
		by = append(by, "list of sums")
	}
	if o.key != "" {
		by = append(by, "signature")
	}
	return by
}

// fetchedView is what is known of an image that is in the cache.
type fetchedView struct {
	imageView
	Cached bool `json:"cached"` // before
}

func (p *program) imageFetchCommand() *cobra.Command {
	var o imageOptions
	c := &cobra.Command{
		Use:   "fetch URL",
		Short: "Fetch an image into the cache, so that installations find it there",
		Long: `Fetch an image into the cache, and check its sum and its signature. An installation that
names the same sum finds it there. A connection that was cut is taken up again where it
ended, also by the next "imprint image fetch". What was not used for longest makes room.`,
		Example: "  imprint image fetch https://images.example/debian-13.qcow2 --sums https://images.example/SHA512SUMS",
		Args:    exactArgs("a URL"),
		RunE: func(c *cobra.Command, args []string) error {
			if !strings.HasPrefix(args[0], "http://") && !strings.HasPrefix(args[0], "https://") {
				return imprint.Errorf(imprint.Invalid, "fetch", args[0], "it is no URL of http or https").WithHint("images that are here already are used from where they are")
			}
			s, digest, err := p.openImage(c.Context(), &o, args[0])
			if err != nil {
				return err
			}
			defer s.Close()
			how := "fetched"
			if !s.Fetched {
				how = "in the cache already"
			}
			v := fetchedView{imageView{Source: s.Origin, Format: s.Format.String(), FileSize: s.FileSize, Digest: digest, Verified: o.verified()}, !s.Fetched}
			return p.print(v, func(w io.Writer) {
				fmt.Fprintf(w, "%s %s: %s, %s, sha256:%s\n", v.Source, how, v.Format, image.Bytes(v.FileSize), v.Digest)
			})
		},
	}
	o.flags(c)
	return c
}

func (p *program) imageListCommand() *cobra.Command {
	var o imageOptions
	c := &cobra.Command{
		Use:   "list",
		Short: "List the images in the cache, the last used first",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			all, err := image.NewStore(image.Config{Cache: o.cache}).Cached()
			if err != nil {
				return err
			}
			if all == nil {
				all = []image.Cached{} // a list with nothing in it, also as JSON
			}
			return p.print(all, func(w io.Writer) {
				row(w, "SUM", "SIZE", "USED")
				for _, c := range all {
					row(w, c.Name, image.Bytes(c.Size), c.Used.UTC().Format(time.RFC3339))
				}
			})
		},
	}
	o.cacheFlag(c)
	return c
}

// prunedView is what the cache has after some of it was removed.
type prunedView struct {
	Left int64 `json:"left"` // bytes
}

func (p *program) imagePruneCommand() *cobra.Command {
	var o imageOptions
	var keep string
	c := &cobra.Command{
		Use:   "prune",
		Short: "Remove images from the cache that were not used for longest",
		Long: `Remove images from the cache, those first that were not used for longest, until it has at
most as many bytes as --keep says: without it, none. What an installation uses at this moment stays.`,
		Example: "  imprint image prune\n  imprint image prune --keep 10G",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			var most int64
			if keep != "0" {
				var err error
				if most, err = parseSize(keep); err != nil {
					return err
				}
			}
			left, err := image.NewStore(image.Config{Cache: o.cache}).Prune(most)
			if err != nil {
				return err
			}
			return p.print(prunedView{left}, func(w io.Writer) { fmt.Fprintf(w, "%s are left\n", image.Bytes(left)) })
		},
	}
	c.Flags().StringVar(&keep, "keep", "0", "how many `bytes` may stay, as in 10G")
	o.cacheFlag(c)
	return c
}
