package relay

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"imprint"
	"imprint/internal/durable"
)

// followedFile, beside the key file, names the control plane's key-encryption key
// at the time when the copy was given its own present one.
const followedFile = "kek.follows"

// follow gives the copy a new key, if the control plane's is not the one that was
// followed last: what "imprint seal rotate" makes worthless there, old backups of
// the disk without a key file of their time, becomes so here as well. A failure
// leaves everything readable, and the next time that the control plane says its
// key it is tried again.
func (r *Relay) follow(key string) {
	r.following.Lock()
	defer r.following.Unlock()
	path := filepath.Join(r.Dir, followedFile)
	if before, err := os.ReadFile(path); err == nil && string(before) == key {
		return
	}
	n, err := r.copy.reseal()
	if err == nil {
		err = durable.WriteFile(path, []byte(key), 0o600)
	}
	if err != nil {
		r.Logger.Error("the copy was not given a new key; the old one stays until it is", "error", err)
		return
	}
	r.Logger.Info("the copy was given a new key, because the control plane has one", "files", n)
}

// reseal makes a new key, gives it every file of the copy, and forgets the older
// ones. Files may be read and written meanwhile. It returns how many files it
// rewrote.
func (c *copied) reseal() (int, error) {
	if err := c.settle(); err != nil { // so that broken attempts do not heap up keys
		return 0, err
	}
	c.mu.Lock() // nothing that the old key sealed is on its way to the disk
	_, err := c.keys.Rotate()
	c.mu.Unlock()
	if err != nil {
		return 0, err
	}
	return c.rewrap()
}

// settle ends a reseal that an earlier process began.
func (c *copied) settle() error {
	if c.keys.Older() == 0 {
		return nil
	}
	_, err := c.rewrap()
	return err
}

// rewrap gives every file of the copy the primary key and retires the others. The
// new key has to be in the key file before; what is stored from then on has it.
func (c *copied) rewrap() (int, error) {
	entries, err := os.ReadDir(c.dir)
	if err != nil {
		return 0, imprint.Errorf(imprint.Internal, "list", c.dir, "%w", err)
	}
	n := 0
	for _, e := range entries {
		if !e.Type().IsRegular() {
			continue
		}
		changed, err := c.rewrapFile(e.Name())
		if err != nil {
			return n, imprint.Errorf(imprint.Internal, "seal anew", e.Name(), "%w", err)
		}
		if changed {
			n++
		}
	}
	return n, c.keys.Retire()
}

func (c *copied) rewrapFile(name string) (changed bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	path := filepath.Join(c.dir, name)
	blob, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) { // dropped meanwhile
		return false, nil
	}
	if err != nil {
		return false, err
	}
	out, changed, err := c.keys.Rewrap(blob, "copy/"+name)
	if err != nil { // it opens with no key that there is
		c.logger.Warn("a file of the copy is of no use and is removed", "file", name, "error", err)
		c.remove(name)
		return false, nil
	}
	if !changed {
		return false, nil
	}
	return true, durable.WriteFile(path, out, 0o600)
}
