package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"imprint"
	"imprint/internal/durable"
)

// The cache's directories. A blob's name is its sum, such as sha256-60ab…; its time of
// access is when it was last used, and whoever uses it has a shared lock on it. A
// partial file, its version and the lock of whoever fetches it have the name of the
// blob that it is to be, or one of the URL if nobody said which.
const (
	blobDir    = "blobs"
	partialDir = "partial"
	lockDir    = "locks"
)

// staleAfter is how long a partial file is kept for somebody who goes on with it.
const staleAfter = 7 * 24 * time.Hour

// Cached is an image in the cache.
type Cached struct {
	Name string    `json:"name"` // its sum
	Size int64     `json:"size"` // bytes
	Used time.Time `json:"used"`
	path string
}

// fetched returns an image from the cache, which it is fetched into if need be. Of
// several that want the same one fetches it, and the others wait.
func (st *Store) fetched(ctx context.Context, c *client, u *url.URL, want []sum, progress func(done, total int64)) (*Source, error) {
	name := "url-" + hashName(shown(u)+"?"+u.RawQuery)
	if len(want) > 0 {
		name = blobName(want[0])
		if s, err := st.blob(want[0], u); s != nil || err != nil {
			return s, err
		}
	}
	if err := st.prepare(); err != nil {
		return nil, err
	}
	unlock, err := st.lock(ctx, name)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if len(want) > 0 { // somebody else may have fetched it meanwhile
		if s, err := st.blob(want[0], u); s != nil || err != nil {
			return s, err
		}
	}
	is, err := st.fetch(ctx, c, u, name, want, progress)
	if err != nil {
		return nil, err
	}
	s, err := st.blob(is, u)
	switch {
	case s != nil:
		s.Fetched = true
	case err == nil:
		err = imprint.Errorf(imprint.Conflict, "open", shown(u), "it was removed from the cache at once").WithHint("start again, with a larger cache")
	default:
		os.Remove(st.blobPath(is)) // it is no image
	}
	return s, err
}

// fetch downloads an image, gives it its name in the cache and returns its sum. If that
// is wrong the file is gone.
func (st *Store) fetch(ctx context.Context, c *client, u *url.URL, name string, want []sum, progress func(done, total int64)) (sum, error) {
	path := filepath.Join(st.c.Cache, partialDir, name)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return sum{}, fileError("create", path, err)
	}
	defer f.Close()
	d := &download{c: c, u: u, f: f, state: path + ".version", progress: progress, room: func(size int64) error { return st.room(u, size, path) }}
	st.c.Log.Debug("fetching image", "url", shown(u))
	if err := d.run(ctx); err != nil {
		if kind := imprint.KindOf(err); kind != imprint.Unavailable && kind != imprint.Internal {
			drop(path)
		}
		return sum{}, readError(path, err)
	}
	h := newHashes(want)
	if err := h.file(ctx, f, d.at, nil); err != nil {
		return sum{}, readError(path, err)
	}
	s := &Source{f: f, Origin: shown(u), want: want}
	if s.info, err = f.Stat(); err != nil {
		return sum{}, fileError("read", path, err)
	}
	if _, err := s.judge(h); err != nil {
		drop(path)
		if d.resumed { // what an earlier process left may be to blame
			return st.fetch(ctx, c, u, name, want, progress)
		}
		return sum{}, err
	}
	is := sum{"sha256", h.sum("sha256")}
	if len(want) > 0 {
		is = want[0]
	}
	blob := st.blobPath(is)
	err = f.Chmod(0o400)
	if err == nil {
		err = os.Rename(path, blob)
	}
	if err == nil {
		os.Remove(d.state)
		err = durable.SyncDir(filepath.Dir(blob))
	}
	if err != nil {
		return sum{}, fileError("keep", blob, err)
	}
	return is, nil
}

func drop(partial string) {
	os.Remove(partial)
	os.Remove(partial + ".version")
}

// blob returns the image that the cache has under a sum, or nil if there is none.
func (st *Store) blob(is sum, u *url.URL) (*Source, error) {
	path := st.blobPath(is)
	if _, err := os.Lstat(path); err != nil {
		return nil, nil
	}
	s, err := open(path, shown(u))
	if err != nil {
		return nil, err
	}
	// As long as it is locked nobody removes it; somebody may have before.
	err = unix.Flock(int(s.f.Fd()), unix.LOCK_SH|unix.LOCK_NB)
	if named, e := os.Lstat(path); err != nil || e != nil || !os.SameFile(named, s.info) {
		s.Close()
		return nil, nil
	}
	os.Chtimes(path, time.Now(), time.Time{}) // also where reading does not do it
	s.want = []sum{is}
	s.spoilt = func() {
		st.c.Log.Warn("image in the cache is damaged", "name", path)
		os.Remove(path)
	}
	return s, nil
}

func (st *Store) blobPath(is sum) string { return filepath.Join(st.c.Cache, blobDir, blobName(is)) }

// prepare makes the directories.
func (st *Store) prepare() error {
	if st.c.Cache == "" {
		return imprint.Errorf(imprint.Invalid, "fetch", "image", "there is no directory to keep it in").WithHint("name one with --cache")
	}
	for _, dir := range []string{"", blobDir, partialDir, lockDir} {
		path := filepath.Join(st.c.Cache, dir)
		if err := os.MkdirAll(path, 0o700); err != nil {
			return fileError("create", path, err)
		}
	}
	info, err := os.Stat(st.c.Cache)
	if err != nil {
		return fileError("open", st.c.Cache, err)
	}
	if info.Mode().Perm()&0o022 != 0 {
		return imprint.Errorf(imprint.Denied, "use", st.c.Cache, "others may write to it (mode %v)", info.Mode().Perm()).WithHint("chmod 700 %s", st.c.Cache)
	}
	return nil
}

// lock waits until nobody else has the name.
func (st *Store) lock(ctx context.Context, name string) (unlock func(), err error) {
	path := filepath.Join(st.c.Cache, lockDir, name)
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return nil, fileError("lock", path, err)
		}
		if err := flock(ctx, f); err != nil {
			f.Close()
			return nil, err
		}
		// Its last owner may have removed it.
		mine, err1 := f.Stat()
		named, err2 := os.Lstat(path)
		if err1 == nil && err2 == nil && os.SameFile(mine, named) {
			return func() { os.Remove(path); f.Close() }, nil
		}
		f.Close()
	}
}

// flock waits for a lock, or the end of ctx.
func flock(ctx context.Context, f *os.File) error {
	for wait := 10 * time.Millisecond; ; wait = min(2*wait, time.Second) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return fileError("lock", f.Name(), err)
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// room removes what was not used for longest until an image of so many bytes fits,
// besides the partial file that is to be it.
func (st *Store) room(u *url.URL, size int64, partial string) error {
	if size > st.c.MaxCache {
		return imprint.Errorf(imprint.Exhausted, "fetch", shown(u), "it has %s, and the cache may have %s", Bytes(size), Bytes(st.c.MaxCache)).WithHint("allow the cache more")
	}
	left, err := st.shrink(st.c.MaxCache-size, partial)
	if err == nil && left > st.c.MaxCache-size {
		err = imprint.Errorf(imprint.Exhausted, "fetch", shown(u), "it has %s, and of the %s that the cache may have %s are in use", Bytes(size), Bytes(st.c.MaxCache), Bytes(left)).
			WithHint("wait for other installations, or allow the cache more")
	}
	return err
}

// shrink removes images and stale partial files until at most so many bytes are left,
// apart from one file, and returns how many are.
func (st *Store) shrink(to int64, except string) (int64, error) {
	all, err := st.Cached()
	if err != nil {
		return 0, err
	}
	parts, err := list(filepath.Join(st.c.Cache, partialDir))
	if err != nil {
		return 0, err
	}
	var total int64
	for _, p := range parts {
		if p.path == except || p.path == except+".version" {
			continue
		}
		if time.Since(p.Used) > staleAfter && st.unlocked(strings.TrimSuffix(p.Name, ".version")) {
			os.Remove(p.path)
			continue
		}
		total += p.Size
	}
	for _, c := range all {
		total += c.Size
	}
	for _, c := range slices.Backward(all) { // the last used is first
		if total <= to {
			break
		}
		if removeUnused(c.path) {
			st.c.Log.Info("image removed from the cache", "name", c.Name, "size", c.Size, "used", c.Used)
			total -= c.Size
		}
	}
	return total, nil
}

// unlocked reports whether nobody is fetching what has a name.
func (st *Store) unlocked(name string) bool {
	f, err := os.Open(filepath.Join(st.c.Cache, lockDir, name))
	if err != nil {
		return errors.Is(err, fs.ErrNotExist)
	}
	defer f.Close()
	return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil
}

// removeUnused removes a blob that nobody has open.
func removeUnused(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil && os.Remove(path) == nil
}

// Cached lists the images in the cache, the last used first.
func (st *Store) Cached() ([]Cached, error) {
	all, err := list(filepath.Join(st.c.Cache, blobDir))
	for i := range all {
		all[i].Name = strings.Replace(all[i].Name, "-", ":", 1)
	}
	return all, err
}

// Prune removes images that nobody uses, those first that were not used for longest,
// until the cache has at most so many bytes, and returns how many it has then.
func (st *Store) Prune(to int64) (left int64, err error) { return st.shrink(to, "") }

func list(dir string) ([]Cached, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fileError("list", dir, err)
	}
	var all []Cached
	for _, e := range entries {
		if info, err := e.Info(); err == nil && info.Mode().IsRegular() {
			used := time.Unix(info.Sys().(*syscall.Stat_t).Atim.Unix())
			all = append(all, Cached{e.Name(), info.Size(), used, filepath.Join(dir, e.Name())})
		}
	}
	slices.SortFunc(all, func(a, b Cached) int { return b.Used.Compare(a.Used) })
	return all, nil
}

func blobName(s sum) string { return s.algorithm + "-" + hex.EncodeToString(s.value) }

func hashName(s string) string {
	h := sha256.Sum256([]byte(s))
	return hex.EncodeToString(h[:])
}
