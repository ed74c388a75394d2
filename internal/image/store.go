package image

import (
	"context"
	"io"
	"log/slog"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"imprint"
)

// Config is what a [Store] works with.
type Config struct {
	// Cache is the directory in which images that came over a network are kept. It is
	// made, for its owner alone, when it is first needed.
	Cache string
	// MaxCache is how many bytes the cache may have; 0 is [DefaultMaxCache]. No larger
	// image can be fetched.
	MaxCache int64
	// Dirs are the directories below which an image of the scheme file may be; nil is
	// anywhere, for a user who names the image himself. It must not be nil where
	// somebody else's spec names it, since every file that this process can read would
	// be an image.
	Dirs []string
	Log  *slog.Logger // nil is none
}

// DefaultMaxCache is how many bytes a cache may have unless its user says otherwise.
const DefaultMaxCache = 64 << 30

// Store gets images. It may be used by several goroutines, and its cache by several
// processes.
type Store struct {
	c     Config
	pause time.Duration // after the first failure of a server; 0 is the usual
}

// NewStore returns a store. Nothing is touched before the first image is asked for.
func NewStore(c Config) *Store {
	if c.MaxCache == 0 {
		c.MaxCache = DefaultMaxCache
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return &Store{c: c}
}

// OpenOptions is what [Store.Open] may need beside the image.
type OpenOptions struct {
	// Credentials is "user:password" for HTTP basic authentication; zero is none.
	Credentials imprint.Secret
	// Archive says that it is a package to unpack, and no image: what it is made of, others judge.
	Archive bool
	// Progress is called now and then while the image is fetched, with the bytes that
	// are here and that there will be; total is -1 if the server does not say.
	Progress func(done, total int64)
}

// Open gets an image: opens its file, or fetches it unless the cache has it, and checks
// the signature if it is to have one. Its sums are checked by whoever reads it all:
// [Source.Write] and [Source.Check]. The source may also be a plain path.
//
// It fails with kind [imprint.Invalid] if the image is not what it is to be, with
// [imprint.Denied] if it is not signed by its key, lies outside of Config.Dirs or the
// server refuses, with [imprint.NotFound], with [imprint.Exhausted] if the cache has no
// room for it, and with [imprint.Unavailable] if the source cannot be reached.
func (st *Store) Open(ctx context.Context, m imprint.Image, o OpenOptions) (*Source, error) {
	path, u, err := locate(m.Source)
	if err != nil {
		return nil, err
	}
	client, err := st.client(m, o.Credentials)
	if err != nil {
		return nil, err
	}
	defer client.close()
	want, err := st.sums(ctx, client, m)
	if err != nil {
		return nil, err
	}
	var s *Source
	if u != nil {
		s, err = st.fetched(ctx, client, u, want, o.Progress)
	} else if f, e := st.local(path); e == nil {
		s, err = take(f, path)
	} else {
		err = e
	}
	if err != nil {
		return nil, err
	}
	s.want = append(s.want, want...)
	if !o.Archive {
		err = s.expect(m.Format)
	}
	if err == nil && m.Sums == "" && m.Signature != "" {
		err = st.signed(ctx, client, s, m)
	}
	if err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// sums returns those that the image has to have: the one that the reference has, and
// the one in the signed list that it names.
func (st *Store) sums(ctx context.Context, c *client, m imprint.Image) ([]sum, error) {
	var want []sum
	if m.Sum != "" {
		w, err := parseSum(m.Sum)
		if err != nil {
			return nil, err
		}
		want = append(want, w)
	}
	if m.Sums == "" {
		return want, nil
	}
	list, err := st.small(ctx, c, m.Sums)
	if err != nil {
		return nil, err
	}
	if m.Key != "" {
		var signature []byte // the list has it around it, if there is none beside it
		if m.Signature != "" {
			if signature, err = st.small(ctx, c, m.Signature); err != nil {
				return nil, err
			}
		}
		if list, err = signedList(m.Key, list, signature); err != nil {
			return nil, unsigned(m.Sums, err)
		}
	}
	w, err := lookUp(list, nameOf(m.Source))
	if err != nil {
		return nil, err
	}
	return append(want, w), nil
}

// signed checks the signature of the image itself.
func (st *Store) signed(ctx context.Context, c *client, s *Source, m imprint.Image) error {
	signature, err := st.small(ctx, c, m.Signature)
	if err != nil {
		return err
	}
	h := newHashes(nil)
	in := io.TeeReader(io.NewSectionReader(s.f, 0, s.FileSize), h)
	if err := signedFile(m.Key, in, signature); err != nil {
		return unsigned(s.Origin, err)
	}
	if _, err := s.judge(h); err != nil {
		return err
	}
	s.pin("sha256", h)
	return nil
}

func unsigned(what string, err error) error {
	if _, u, e := locate(what); e == nil && u != nil {
		what = shown(u)
	}
	return imprint.Errorf(imprint.Denied, "verify", what, "it is not signed by the key that it should be signed by: %w", err).
		WithHint("nothing was written; look whether the signature is of this file, and the key the publisher's")
}

// small returns a list of sums or a signature.
func (st *Store) small(ctx context.Context, c *client, source string) ([]byte, error) {
	path, u, err := locate(source)
	if err != nil {
		return nil, err
	}
	if u != nil {
		return c.small(ctx, u)
	}
	f, err := st.local(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxSums+1))
	if err != nil {
		return nil, fileError("read", path, err)
	}
	if len(b) > maxSums {
		return nil, imprint.Errorf(imprint.Invalid, "read", path, "it has more than %s, which no list of sums and no signature has", Bytes(maxSums))
	}
	return b, nil
}

// nameOf is the name by which a list has the sum of an image.
func nameOf(source string) string {
	p, u, err := locate(source)
	if err == nil && u != nil {
		p = u.Path
	}
	return path.Base(p)
}

// locate returns the path of a local source, or the URL of another.
func locate(source string) (path string, u *url.URL, err error) {
	scheme, _, has := strings.Cut(source, ":")
	if !has || strings.ContainsAny(scheme, "/.") || source == "" {
		if source == "" {
			return "", nil, imprint.Errorf(imprint.Invalid, "open", "image", "no source is given")
		}
		return source, nil, nil
	}
	u, err = url.Parse(source)
	if err != nil {
		return "", nil, imprint.Errorf(imprint.Invalid, "open", "image", "its source is not a URL").WithHint("percent-encode what a URL cannot hold")
	}
	switch {
	case u.Scheme == "file" && (u.Host == "" || u.Host == "localhost") && filepath.IsAbs(u.Path):
		return u.Path, nil, nil
	case (u.Scheme == "http" || u.Scheme == "https") && u.Host != "":
		return "", u, nil
	}
	return "", nil, imprint.Errorf(imprint.Invalid, "open", shown(u), "it is neither a path, nor a URL of the schemes file, http and https")
}

// shown is a URL for people and logs. What is secret in it is in its user or its query.
func shown(u *url.URL) string {
	c := url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}
	return c.String()
}

// local opens a file that may be an image, without waiting for whoever may write to it,
// if it is a pipe.
func (st *Store) local(path string) (*os.File, error) {
	const flags = unix.O_RDONLY | unix.O_NONBLOCK | unix.O_CLOEXEC
	if st.c.Dirs == nil {
		f, err := os.OpenFile(path, flags, 0)
		if err != nil {
			return nil, fileError("open", path, err)
		}
		return f, nil
	}
	real, err := st.allowed(path)
	if err != nil {
		return nil, err
	}
	return openWithoutLinks(real, path, flags)
}

// openWithoutLinks opens a file of which the path was found to have no symbolic link,
// and fails if it has one by now. The error calls it name.
func openWithoutLinks(path, name string, flags uint64) (*os.File, error) {
	fd, err := unix.Openat2(unix.AT_FDCWD, path, &unix.OpenHow{Flags: flags, Resolve: unix.RESOLVE_NO_SYMLINKS})
	if err != nil {
		return nil, fileError("open", name, err)
	}
	return os.NewFile(uintptr(fd), path), nil
}

// allowed returns the path without links of a file that may be an image.
func (st *Store) allowed(path string) (string, error) {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return "", fileError("open", path, err)
	}
	for _, dir := range st.c.Dirs {
		if dir, err := filepath.EvalSymlinks(dir); err == nil && strings.HasPrefix(real, strings.TrimSuffix(dir, "/")+"/") {
			return real, nil
		}
	}
	return "", imprint.Errorf(imprint.Denied, "open", path, "images are only taken from %s", strings.Join(st.c.Dirs, " and ")).
		WithHint("put the image there")
}
