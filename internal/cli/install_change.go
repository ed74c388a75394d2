package cli

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"strings"

	"imprint"
	"imprint/internal/helpervm"
	"imprint/internal/image"
	"imprint/internal/install"
	"imprint/internal/job"
)

// installChanges is what is done to an image on its disk, all of it in one helper VM.
type installChanges struct {
	vm       helpervm.Config
	repair   *job.Repair // nil is none
	packages []installPackage
	scripts  *installScripts
	log      func(job.Log)
	warn     func(string) // of what a user may have to do as well
}

// installPackage is a personalization package that is at hand.
type installPackage struct {
	name  string
	file  *os.File
	size  int64
	rules job.Unpack
}

func (c *installChanges) add(p installPackage) { c.packages = append(c.packages, p) }

func (c *installChanges) close() {
	for _, p := range c.packages {
		p.file.Close()
	}
	c.packages = nil
}

// Ready implements [install.Changes].
func (c *installChanges) Ready() error { return c.vm.Ready() }

// Change implements [install.Changes].
func (c *installChanges) Change(ctx context.Context, disk *os.File, progress func(what string, done, total int64), done func(imprint.InstallStep, string)) error {
	vm := c.vm
	vm.Disks = []helpervm.Disk{{File: disk}}
	var j job.Job
	if c.repair != nil {
		j.Tasks = append(j.Tasks, job.Task{Name: "repair", Repair: c.repair})
	}
	for _, p := range c.packages {
		unpack := p.rules
		unpack.Package, unpack.Size = len(vm.Disks), p.size
		vm.Disks = append(vm.Disks, helpervm.Disk{File: p.file, ReadOnly: true})
		j.Tasks = append(j.Tasks, job.Task{Name: "unpack " + p.name, Unpack: &unpack})
	}
	progress("starting the helper VM", 0, 0)
	vm.Progress = func(p job.Progress) { progress(p.Task, p.Done, p.Total) }
	vm.Log = func(l job.Log) {
		progress(l.Task, 0, 0)
		if c.log != nil {
			c.log(l)
		}
	}
	r, err := helpervm.Run(ctx, vm, j)
	if r != nil {
		tasks := r.Tasks
		if r.Fault != nil && len(tasks) > 0 {
			tasks = tasks[:len(tasks)-1] // the last is the one that failed
		}
		c.report(tasks, r.Fault == nil, done)
	}
	if err != nil && r != nil && len(r.Tasks) > 0 {
		if name, is := strings.CutPrefix(r.Tasks[len(r.Tasks)-1].Name, "unpack "); is { // the VM does not know which package it is
			err = imprint.Errorf(imprint.KindOf(err), "unpack", name, "%w", err).WithHint("%s", imprint.HintOf(err))
		}
	}
	if err != nil || c.scripts.def == nil {
		return err
	}
	progress("running the scripts of "+c.scripts.def.Name, 0, 0)
	detail, err := c.scripts.create(ctx, disk)
	if err == nil {
		done(imprint.InstallScripts, detail)
	}
	return err
}

// report tells of the steps that are complete. Unpacking is one when all packages are.
func (c *installChanges) report(tasks []job.Outcome, all bool, done func(imprint.InstallStep, string)) {
	var unpacked, files int
	var bytes int64
	for _, o := range tasks {
		switch {
		case o.Repair != nil:
			did := strings.Join(o.Repair.Did, "; ")
			for _, text := range o.Repair.Warnings {
				c.warn(text)
			}
			done(imprint.InstallRepaired, fmt.Sprintf("%s: %s", cmp.Or(o.Repair.System, "no system"), cmp.Or(did, "nothing was to be done")))
		case o.Unpack != nil && !o.Unpack.Had:
			unpacked, files, bytes = unpacked+1, files+o.Unpack.Entries, bytes+o.Unpack.Bytes
		}
	}
	if all && unpacked > 0 {
		done(imprint.InstallPersonalized, fmt.Sprintf("%d entries of %d packages, %s", files, unpacked, image.Bytes(bytes)))
	}
}

// wantedPackage is a personalization package, and what may get it.
type wantedPackage struct {
	imprint.Package
	store *image.Store
}

// installSources are the image and the packages: all that is at hand before the disk is touched.
type installSources struct {
	installImage
	packages []wantedPackage
	injected func(context.Context) ([]installPackage, error) // made of what is here
	changes  *installChanges
	scripts  *installScripts
}

// Fetch implements [install.Images].
func (s *installSources) Fetch(ctx context.Context, progress func(done, total int64)) (install.Image, error) {
	s.changes.close()
	if err := s.scripts.prepare(ctx); err != nil {
		return install.Image{}, err
	}
	if name := s.image.Credentials; name != "" && s.credentials.IsZero() {
		var err error
		if s.credentials, err = s.scripts.value(name); err != nil {
			return install.Image{}, err
		}
	}
	img, err := s.installImage.Fetch(ctx, progress)
	if err != nil {
		return img, err
	}
	for _, p := range s.packages {
		one, err := s.fetch(ctx, p, progress)
		if err != nil {
			return img, err
		}
		s.changes.add(one)
	}
	made, err := s.injected(ctx)
	for _, p := range made {
		s.changes.add(p)
	}
	return img, err
}

func (s *installSources) fetch(ctx context.Context, p wantedPackage, progress func(done, total int64)) (installPackage, error) {
	var credentials imprint.Secret
	if p.Credentials != "" {
		var err error
		if credentials, err = s.scripts.value(p.Credentials); err != nil {
			return installPackage{}, err
		}
	}
	src, err := p.store.Open(ctx, imprint.Image{Source: p.Source, Sum: p.Sum, CA: p.CA}, image.OpenOptions{Credentials: credentials, Archive: true, Progress: progress})
	if err != nil {
		return installPackage{}, err
	}
	defer src.Close()
	if _, err := src.Check(ctx, progress); err != nil {
		return installPackage{}, err
	}
	f, err := src.File()
	if err != nil {
		return installPackage{}, err
	}
	return installPackage{name: src.Origin, file: f, size: src.FileSize, rules: job.Unpack{Devices: p.Devices}}, nil
}
