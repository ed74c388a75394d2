//go:build linux

package unpack

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"imprint"
)

// parseAccounts returns the numbers of the names in a file like /etc/passwd or
// /etc/group, both of which have them in the third field. A line that is none is
// passed over, as the C library does; the first of two counts.
func parseAccounts(text string) map[string]uint32 {
	numbers := map[string]uint32{}
	for line := range strings.Lines(text) {
		fields := strings.Split(strings.TrimSpace(line), ":")
		if len(fields) < 3 || fields[0] == "" || strings.ContainsAny(fields[0][:1], "#+-") {
			continue
		}
		n, err := strconv.ParseUint(fields[2], 10, 32)
		if _, has := numbers[fields[0]]; err == nil && !has {
			numbers[fields[0]] = uint32(n)
		}
	}
	return numbers
}

// accounts are the users and groups of the target as it will be.
type accounts struct{ users, groups map[string]uint32 }

func (a accounts) lookUp(who account) (uint32, bool) {
	of := a.users
	if who.group {
		of = a.groups
	}
	n, ok := of[who.name]
	return n, ok
}

// owner returns whom e belongs to.
func (a accounts) owner(e *entry, how Owners) number {
	owner := e.number
	if how != OwnersByNumber {
		if n, ok := a.lookUp(account{false, e.name.user}); ok {
			owner.user = n
		}
		if n, ok := a.lookUp(account{true, e.name.group}); ok {
			owner.group = n
		}
	}
	return owner
}

// require keeps the names of e that have to be known to the target.
func (c *checker) require(e *entry) error {
	need := func(who account) (uint32, bool) {
		if _, ok := c.names[who]; !ok && who.name != "" {
			c.names[who] = e.path
			c.held += int64(len(who.name) + len(e.path))
		}
		return 0, true
	}
	if c.o.Owners == OwnersKnown {
		need(account{false, e.name.user})
		need(account{true, e.name.group})
	}
	for _, a := range e.attrs {
		if _, err := a.binary(need); err != nil {
			return refuse(imprint.Invalid, e.path, "%w", err)
		}
	}
	return nil
}

// readAccounts keeps what the package says who has which number.
func (c *checker) readAccounts(path string, e *entry, r *reader) error {
	to := &c.brings.users
	switch {
	case e.kind != file:
		return nil
	case path == "etc/group":
		to = &c.brings.groups
	case path != "etc/passwd":
		return nil
	}
	if e.size > maxAccounts {
		return refuse(imprint.Exhausted, e.path, "it has %d bytes; up to %d are read for the numbers of owners", e.size, maxAccounts).
			WithHint("take the owners by number")
	}
	b, err := io.ReadAll(r.tar)
	if err != nil {
		return r.broken(err)
	}
	*to = parseAccounts(string(b))
	return nil
}

// owners completes the plan by who has which number.
func (c *checker) owners() error {
	if c.o.Owners == OwnersByNumber && len(c.names) == 0 {
		return nil
	}
	all := &c.plan.accounts
	for _, of := range []struct {
		path   string
		brings map[string]uint32
		to     *map[string]uint32
	}{{"etc/passwd", c.brings.users, &all.users}, {"etc/group", c.brings.groups, &all.groups}} {
		if *of.to = of.brings; of.brings != nil {
			continue
		}
		text, err := readIn(c.fd, of.path)
		if err != nil {
			return imprint.Errorf(imprint.Conflict, "unpack", "package", "whom its files belong to: %s of the image: %w", of.path, err).
				WithHint("take the owners by number")
		}
		*of.to = parseAccounts(text)
	}
	byName := func(a, b account) int { return strings.Compare(a.name, b.name) }
	for _, who := range slices.SortedFunc(maps.Keys(c.names), byName) {
		if _, ok := all.lookUp(who); !ok {
			what := "user"
			if who.group {
				what = "group"
			}
			return refuse(imprint.Conflict, c.names[who], "the image does not know the %s %q, which it names", what, who.name).
				WithHint("name one that is in the image's /etc/passwd or /etc/group, or a number")
		}
	}
	return nil
}

// readIn returns the regular file at path as a process has it whose root directory
// is root; nothing if it is not there.
func readIn(root int, path string) (string, error) {
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	at, err := openat2(root, path, &how)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	defer unix.Close(at)
	// Opening anything but a regular file could do something, or take for ever.
	var st unix.Stat_t
	if err := unix.Fstat(at, &st); err != nil {
		return "", err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Size > maxAccounts {
		return "", fmt.Errorf("it is no file of up to %d bytes", maxAccounts)
	}
	f, err := os.Open(procPath(at))
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxAccounts))
	return string(b), err
}

// procPath is a name for the open file fd, for what takes only names.
func procPath(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }
