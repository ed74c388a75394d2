package relay

import (
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"imprint"
	"imprint/internal/dialect"
	"imprint/internal/durable"
	"imprint/internal/hostapi"
	"imprint/internal/seal"
)

// copied is what the host knows of its instances, on its disk. Every file is
// sealed, public or not, for what is public to a guest need not be so to whoever
// has the disk. A file that is lost or does not open costs a guest nothing while
// the control plane is there; so writing is logged when it fails, and goes on.
//
//	ID.instance       a record
//	ID.SHA-256.value  a private value, by the digest of its name
//	NAME.tenant       what is common to a tenant's instances
type copied struct {
	dir    string
	keys   *seal.File
	logger *slog.Logger

	mu sync.Mutex // held while files change
	// revisions are those of the records on the disk, or 0 if they are of another
	// past than what is told now; guarded by mu.
	revisions map[imprint.InstanceID]int64
}

const (
	instanceSuffix = ".instance"
	valueSuffix    = ".value"
	tenantSuffix   = ".tenant"
)

func openCopy(dir string, keys *seal.File, logger *slog.Logger) (*copied, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, imprint.Errorf(imprint.Internal, "make", dir, "%w", err)
	}
	if err := durable.Clean(dir); err != nil {
		return nil, imprint.Errorf(imprint.Internal, "open", dir, "%w", err)
	}
	return &copied{dir: dir, keys: keys, logger: logger, revisions: map[imprint.InstanceID]int64{}}, nil
}

// files returns the names with a suffix, without it.
func (c *copied) files(suffix string) []string {
	entries, err := os.ReadDir(c.dir)
	if err != nil {
		c.logger.Error("the copy of the instances cannot be listed", "error", err)
	}
	var names []string
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e.Name(), suffix); ok && e.Type().IsRegular() {
			names = append(names, name)
		}
	}
	return names
}

// load opens a file; ok is false if it is not there or of no use.
func (c *copied) load(name string) (imprint.Secret, bool) {
	blob, err := os.ReadFile(filepath.Join(c.dir, name))
	if err != nil {
		return imprint.Secret{}, false
	}
	content, err := c.keys.Open(blob, "copy/"+name)
	if err != nil {
		c.logger.Warn("a file of the copy is of no use and is left out", "file", name, "error", err)
		return imprint.Secret{}, false
	}
	return content, true
}

// store seals a file in the place of an older one.
func (c *copied) store(name string, content []byte) {
	blob, err := c.keys.Seal(imprint.NewSecret(content), "copy/"+name)
	if err == nil {
		err = durable.WriteFile(filepath.Join(c.dir, name), blob, 0o600)
	}
	if err != nil {
		c.logger.Error("a restart without the control plane will not know this", "file", name, "error", err)
	}
}

func (c *copied) remove(name string) {
	if err := os.Remove(filepath.Join(c.dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		c.logger.Error("a file of the copy cannot be removed", "file", name, "error", err)
	}
}

// instances returns the records on the disk.
func (c *copied) instances() []*imprint.Instance {
	c.mu.Lock()
	defer c.mu.Unlock()
	var list []*imprint.Instance
	for _, id := range c.files(instanceSuffix) {
		content, ok := c.load(id + instanceSuffix)
		var one hostapi.Instance
		if !ok || json.Unmarshal(content.Reveal(), &one) != nil || string(one.ID) != id {
			continue
		}
		list = append(list, one.Unwrap())
		c.revisions[one.ID] = one.Revision
	}
	return list
}

// keep puts a record on the disk, unless a later one is there. What an enrolment
// that is over had of private values goes.
func (c *copied) keep(inst *imprint.Instance) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if inst.Revision <= c.revisions[inst.ID] {
		return
	}
	b, err := json.Marshal(hostapi.Instance{Revision: inst.Revision, Instance: *inst})
	if err != nil {
		c.logger.Error("a record cannot be encoded", "instance", inst.ID, "error", err)
		return
	}
	if before, ok := c.load(string(inst.ID) + instanceSuffix); !ok || string(before.Reveal()) != string(b) {
		c.store(string(inst.ID)+instanceSuffix, b)
	}
	c.revisions[inst.ID] = inst.Revision
	if !inst.Enrolment.State.Open() {
		c.dropValues(inst.ID)
	}
}

// rewind makes the next record of each instance count, whatever its revision is.
func (c *copied) rewind() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id := range c.revisions {
		c.revisions[id] = 0
	}
}

// drop forgets an instance.
func (c *copied) drop(id imprint.InstanceID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.forget(id)
}

// retain forgets all instances but those listed.
func (c *copied) retain(listed map[imprint.InstanceID]bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, name := range append(c.files(instanceSuffix), c.files(valueSuffix)...) {
		id, _, _ := strings.Cut(name, ".")
		if !listed[imprint.InstanceID(id)] {
			c.forget(imprint.InstanceID(id))
		}
	}
}

// forget is called with mu held.
func (c *copied) forget(id imprint.InstanceID) {
	c.remove(string(id) + instanceSuffix)
	c.dropValues(id)
	delete(c.revisions, id)
}

// dropValues is called with mu held.
func (c *copied) dropValues(id imprint.InstanceID) {
	for _, name := range c.files(valueSuffix) {
		if strings.HasPrefix(name, string(id)+".") {
			c.remove(name + valueSuffix)
		}
	}
}

func valueFile(id imprint.InstanceID, name string) string {
	return string(id) + "." + string(imprint.DigestOf([]byte(name))) + valueSuffix
}

// keepValue seals a private value. An instance that is not in the copy has none.
func (c *copied) keepValue(id imprint.InstanceID, name string, value imprint.Secret) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, known := c.revisions[id]; !known {
		return
	}
	file := valueFile(id, name)
	if before, ok := c.load(file); ok && before.Equal(value) {
		return
	}
	c.store(file, value.Reveal())
}

func (c *copied) dropValue(id imprint.InstanceID, name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.remove(valueFile(id, name))
}

func (c *copied) value(id imprint.InstanceID, name string) (imprint.Secret, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.load(valueFile(id, name))
}

func (c *copied) keepFacts(t *hostapi.TenantFacts) {
	c.mu.Lock()
	defer c.mu.Unlock()
	b, err := json.Marshal(t.Facts)
	if err != nil {
		c.logger.Error("a tenant's facts cannot be encoded", "tenant", t.Name, "error", err)
		return
	}
	if before, ok := c.load(string(t.Name) + tenantSuffix); !ok || string(before.Reveal()) != string(b) {
		c.store(string(t.Name)+tenantSuffix, b)
	}
}

func (c *copied) facts() map[imprint.TenantName]dialect.Facts {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := map[imprint.TenantName]dialect.Facts{}
	for _, name := range c.files(tenantSuffix) {
		var f dialect.Facts
		if content, ok := c.load(name + tenantSuffix); ok && json.Unmarshal(content.Reveal(), &f) == nil {
			all[imprint.TenantName(name)] = f
		}
	}
	return all
}
