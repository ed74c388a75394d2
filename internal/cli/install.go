package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"imprint"
	"imprint/api"
	"imprint/internal/helpervm"
	"imprint/internal/image"
	"imprint/internal/install"
	"imprint/internal/job"
	"imprint/internal/personalize"
)

// installOptions are the flags of "imprint install".
type installOptions struct {
	imageOptions
	disk, size    string
	source        string // of the image
	imageDirs     []string
	packages      []string
	inject        []string
	drivers       []string
	keepSize      bool
	keepIdentity  bool
	agent         string
	program       string
	noAgent       bool
	verify        bool
	again, dryRun bool
	journal       string
	kernel        string
	memory, cpus  int
	helperLimit   time.Duration
	showLog       bool
	os            osOptions
}

func (p *program) installCommand() *cobra.Command {
	var o installOptions
	c := &cobra.Command{
		Use:   "install NAME --disk DISK",
		Short: "Install a machine's disk from its image",
		Long: `Install a machine's disk from its image: fetch the image and check it, write it, let
it grow to the size of the disk, make it bootable as a virtual machine, give it
identifiers of its own, put files and the agent into it, and run the scripts of its OS
definition. What is in the image is only ever read and changed inside a helper VM.

DISK is a block device that nobody uses, or a file of a raw disk, which is made if there
is none. What was on it is lost. Image, packages and OS definition are those of the
manifest (docs/reference/manifest.md), and what flags add or put in their place.

It may be interrupted or killed at any time, and given again: what is complete is left
out, and what was half done is done again. A disk whose installation failed is marked, so
that nothing boots from it. An installation that is finished is not repeated, unless
--again is given. The instance's timeline and "imprint describe" tell how far it is.`,
		Example: "  imprint install web-1 --disk /dev/vg/web-1 --dry-run\n" +
			"  imprint install web-1 --disk /dev/vg/web-1\n" +
			"  imprint install web-1 --disk web-1.raw --size 10G --image debian-13.qcow2 --sums SHA256SUMS --inject motd:/etc/motd",
		Args:              exactArgs("an instance"),
		ValidArgsFunction: p.completeInstances,
		RunE: func(c *cobra.Command, args []string) error {
			return p.install(c.Context(), args[0], &o)
		},
	}
	f := c.Flags()
	f.StringVar(&o.disk, "disk", "", "the `disk` to install: a block device, or a file")
	f.StringVar(&o.size, "size", "", "what a file is made or enlarged to, as in 10G; as large as the image by default")
	f.StringVar(&o.source, "image", "", "the image, a `URL` or file, in the place of the manifest's")
	o.flags(c)
	f.StringSliceVar(&o.imageDirs, "image-dir", []string{"/srv/images", "/var/lib/imprint-images"}, "where files may be that a manifest names as images or packages")
	f.StringArrayVar(&o.packages, "package", nil, "a personalization package, a `URL` or file, beside the manifest's; repeatable")
	f.StringArrayVar(&o.inject, "inject", nil, "put a file or directory into the system: `LOCAL:GUEST[:MODE[:USER[:GROUP]]]`; repeatable")
	f.StringSliceVar(&o.drivers, "add-driver", platformDrivers(), "Linux modules that the initramfs has to have")
	f.BoolVar(&o.keepSize, "keep-size", false, "let the root filesystem have the size that it has in the image")
	f.BoolVar(&o.keepIdentity, "keep-identity", false, "keep the image's filesystem identifiers, machine-id and host keys")
	f.StringVar(&o.agent, "agent", "", "the imprint-agent to put into a system that has none (default the one beside this program)")
	f.StringVar(&o.program, "helper-program", "", "imprint-helper for the helper VM (default the one beside imprint, or in PATH)")
	f.BoolVar(&o.noAgent, "no-agent", false, "put no agent into it")
	f.BoolVar(&o.verify, "verify", false, "read the image back from the disk and compare")
	f.BoolVar(&o.again, "again", false, "do a finished installation again, or take the disk of another instance")
	f.BoolVar(&o.dryRun, "dry-run", false, "say what would happen, touch nothing")
	f.StringVar(&o.journal, "journal", installJournal(), "`directory` that remembers how far installations are")
	f.StringVar(&o.kernel, "helper-kernel", "", "kernel `file` of the helper VM, with its modules in ../lib/modules (default this machine's)")
	f.IntVar(&o.memory, "helper-memory", 1024, "MiB of memory of the helper VM")
	f.IntVar(&o.cpus, "helper-cpus", 2, "its processors")
	f.DurationVar(&o.helperLimit, "helper-timeout", 30*time.Minute, "end it after this long")
	f.BoolVar(&o.showLog, "log", false, "show what the helper VM's tasks say")
	o.os.flags(c)
	c.MarkFlagsMutuallyExclusive("agent", "no-agent")
	c.MarkFlagRequired("disk")
	for _, name := range []string{"disk", "image", "package", "agent", "helper-kernel", "helper-program"} {
		c.MarkFlagFilename(name)
	}
	c.MarkFlagDirname("journal")
	return c
}

// platformDrivers are what a system needs to find its disks and its host in a virtual machine.
func platformDrivers() []string {
	return []string{"virtio_pci", "virtio_blk", "virtio_scsi", "virtio_console"}
}

// installJournal is where journals are unless the user says otherwise: beside the
// server's data, which another user may own.
func installJournal() string {
	if os.Geteuid() == 0 {
		return "/var/lib/imprint-install"
	}
	dir := os.Getenv("XDG_STATE_HOME")
	if home, err := os.UserHomeDir(); dir == "" && err == nil {
		dir = filepath.Join(home, ".local/state")
	}
	return filepath.Join(dir, "imprint-install")
}

func (p *program) install(ctx context.Context, ref string, o *installOptions) error {
	client := p.client()
	defer client.Close()
	d, err := client.Describe(ctx, ref)
	if err != nil {
		return err
	}
	w, err := p.prepareInstall(ctx, client, d, o)
	if err != nil {
		return err
	}
	defer w.close()
	if o.dryRun {
		return p.previewInstall(w, d)
	}
	view := p.installView()
	w.installer.Tell = view.tell
	err = w.installer.Run(ctx, w.plan, o.again)
	view.close()
	if err != nil || p.output != asTable {
		return err
	}
	fmt.Fprintf(p.out, "%s is installed on %s. Start it: imprint boot %s --disk %s\n", d.Instance.Ref, o.disk, d.Instance.Ref, o.disk)
	return nil
}

// installWork is an installation that is ready to run.
type installWork struct {
	options   *installOptions
	plan      *install.Plan
	installer *install.Installer
	sources   *installSources
	injected  []personalize.Injection
	agent     string // path; "" is none
}

func (w *installWork) close() {
	w.sources.changes.close()
	w.sources.close()
}

// prepareInstall checks all that can be checked without touching or fetching anything.
func (p *program) prepareInstall(ctx context.Context, client *api.Client, d *api.Description, o *installOptions) (*installWork, error) {
	i := &d.Instance
	if err := installable(d); err != nil {
		return nil, err
	}
	img, err := o.chosenImage(i)
	if err != nil {
		return nil, err
	}
	size, err := parseSize(o.size)
	if err != nil {
		return nil, err
	}
	w := &installWork{options: o}
	for _, s := range o.inject {
		one, err := personalize.ParseInjection(s)
		if err != nil {
			return nil, err
		}
		w.injected = append(w.injected, one)
	}
	changes := &installChanges{warn: func(text string) { fmt.Fprintf(p.err, "note: %s\n", text) }, vm: helpervm.Config{Init: o.program, MemoryMiB: o.memory, CPUs: o.cpus, TimeLimit: o.helperLimit, Instance: i.Ref}}
	if o.showLog {
		changes.log = func(l job.Log) { fmt.Fprintf(p.err, "%s: %s\n", l.Task, l.Line) }
	}
	if o.kernel != "" {
		changes.vm.Kernel = helpervm.KernelAt(o.kernel)
	}
	changes.repair = &job.Repair{Grow: !o.keepSize, NewIdentity: !o.keepIdentity, Drivers: o.drivers, EFIFallback: true}
	if !o.noAgent {
		if w.agent = o.agent; w.agent == "" {
			if w.agent, err = helpervm.FindProgram("imprint-agent"); err != nil {
				return nil, err
			}
		}
	}
	changes.repair.AgentFollows = w.agent != ""
	// Only who gives the command may name any file of this machine.
	listed := image.NewStore(image.Config{Cache: o.cache, Dirs: o.imageDirs})
	named := image.NewStore(image.Config{Cache: o.cache})
	var packages []wantedPackage
	for _, one := range i.Spec.Personalization {
		packages = append(packages, wantedPackage{one, listed})
	}
	for _, source := range o.packages {
		url, err := asURL(source)
		if err != nil {
			return nil, err
		}
		packages = append(packages, wantedPackage{imprint.Package{Source: url}, named})
	}
	store := named
	if o.source == "" {
		store = listed
	}
	credentials := []string{img.Credentials}
	for _, one := range packages {
		credentials = append(credentials, one.Credentials)
	}
	scripts, err := p.planScripts(client, i, o, changes.vm, credentials)
	if err != nil {
		return nil, err
	}
	changes.scripts = scripts
	w.sources = &installSources{
		installImage: installImage{store: store, image: *img, verify: o.verify, room: size},
		packages:     packages, changes: changes, injected: w.pack,
		scripts: scripts,
	}
	if info, err := os.Stat(o.disk); err == nil && !info.Mode().IsRegular() {
		if f, err := os.Open(o.disk); err == nil {
			w.sources.room, _ = f.Seek(0, io.SeekEnd)
			f.Close()
		}
	}
	if o.credentials != "" {
		b, err := readFile(o.credentials, imprint.MaxParamLen)
		if err != nil {
			return nil, err
		}
		w.sources.credentials = imprint.NewSecret(bytes.TrimRight(b, "\r\n"))
	}
	inputs, err := w.inputs(packages, img)
	if err != nil {
		return nil, err
	}
	w.plan = &install.Plan{Instance: i.ID, Ref: i.Ref, Generation: i.Generation, Disk: o.disk, Size: size, Image: shownSource(img.Source), Inputs: inputs}
	host, _ := os.Hostname()
	w.installer = &install.Installer{
		Journal: install.Journal{Dir: o.journal}, Images: w.sources, Changes: changes, Now: time.Now,
		Timeline: &installTimeline{client: client, id: i.ID, generation: i.Generation, host: host, disk: o.disk, image: w.plan.Image},
	}
	return w, nil
}

// installable fails unless a machine may be installed now. The server says the same; here it
// is said before anything is looked at, and in a dry run.
func installable(d *api.Description) error {
	i := &d.Instance
	conflict := func(format string, args ...any) *imprint.Error {
		return imprint.Errorf(imprint.Conflict, "install", i.Ref, format, args...)
	}
	switch e := &i.Enrolment; {
	case !e.State.Open():
		return conflict("generation %d is %s, and nothing may enrol any more", i.Generation, e.State).
			WithHint("start its next generation first: imprint rebirth %s", i.Ref)
	case e.Claim != nil:
		return conflict("a machine has claimed generation %d already; one that is installed now would be a second", i.Generation).
			WithHint("start its next generation first: imprint rebirth %s", i.Ref)
	case len(d.Missing) > 0:
		return conflict("the values of its secret parameters are not at hand: %s", strings.Join(d.Missing, ", ")).
			WithHint("give each: imprint set %s %s", i.Ref, d.Missing[0])
	}
	return nil
}

// chosenImage returns the image, of the flags or else of the manifest.
func (o *installOptions) chosenImage(i *api.Instance) (*imprint.Image, error) {
	if o.source == "" {
		if o.Image != (imprint.Image{}) || o.key+o.ca != "" {
			return nil, imprint.Errorf(imprint.Invalid, "install", i.Ref, "it is said by what the image is known, and not which it is").WithHint("name it with --image; what is in the manifest stays as it is")
		}
		if i.Spec.Image == nil {
			return nil, imprint.Errorf(imprint.Invalid, "install", i.Ref, "its manifest names no image").WithHint("give one with --image")
		}
		return i.Spec.Image, nil
	}
	img := o.Image
	img.Source = o.source
	for path, to := range map[string]*string{o.key: &img.Key, o.ca: &img.CA} {
		if path == "" {
			continue
		}
		b, err := readFile(path, imprint.MaxKeyText)
		if err != nil {
			return nil, err
		}
		*to = string(b)
	}
	for _, s := range []*string{&img.Source, &img.Sums, &img.Signature} {
		if *s == "" {
			continue
		}
		url, err := asURL(*s)
		if err != nil {
			return nil, err
		}
		*s = url
	}
	return &img, img.Check()
}

// asURL returns the URL of a source that may be the path of a file that there is.
func asURL(s string) (string, error) {
	if isURL(s) {
		return s, nil
	}
	path, err := filepath.Abs(s)
	if err != nil {
		return "", imprint.Errorf(imprint.Invalid, "find", s, "%w", err)
	}
	if _, err := os.Stat(path); err != nil {
		return "", fileError("read", s, err)
	}
	return "file:" + path, nil
}

func isURL(s string) bool {
	scheme, _, has := strings.Cut(s, ":")
	return has && slices.Contains([]string{"file", "http", "https"}, scheme)
}

// shownSource is a source for people, without what may be secret in a URL.
func shownSource(s string) string {
	s, _, _ = strings.Cut(s, "?")
	return strings.TrimPrefix(s, "file:")
}

// inputs are what decides, beside the image's name, what the disk will hold. Files that
// are injected count with their content.
func (w *installWork) inputs(packages []wantedPackage, img *imprint.Image) ([]string, error) {
	type injected struct {
		personalize.Injection
		Digest imprint.Digest
	}
	var files []injected
	for _, in := range w.injected {
		digest, err := digestOfTree(in.Local)
		if err != nil {
			return nil, err
		}
		files = append(files, injected{in, digest})
	}
	var agent imprint.Digest
	if w.agent != "" {
		var err error
		if agent, err = digestOfTree(w.agent); err != nil {
			return nil, err
		}
	}
	var scripts imprint.Digest
	if w.sources.scripts.def != nil {
		scripts = w.sources.scripts.def.Digest
	}
	b, err := json.Marshal([]any{img, sourcesOf(packages), files, agent, w.sources.changes.repair, scripts})
	if err != nil {
		return nil, imprint.Errorf(imprint.Internal, "encode", "plan", "%w", err)
	}
	return []string{string(b)}, nil
}

func sourcesOf(packages []wantedPackage) (list []imprint.Package) {
	for _, p := range packages {
		list = append(list, p.Package)
	}
	return list
}

// pack makes the packages of what is here: the agent, and what is injected.
func (w *installWork) pack(ctx context.Context) (list []installPackage, err error) {
	if w.agent != "" {
		f, size, err := agentPackage(w.agent)
		if err != nil {
			return nil, err
		}
		list = append(list, installPackage{name: "imprint-agent", file: f, size: size, rules: job.Unpack{Unless: agentPath, KeepDirectories: true}})
	}
	if len(w.injected) > 0 {
		f, size, err := personalize.Inject(ctx, w.injected)
		if err != nil {
			return list, err
		}
		list = append(list, installPackage{name: "injected files", file: f, size: size, rules: job.Unpack{KeepDirectories: true, Owners: "known"}})
	}
	return list, nil
}

// installTimeline puts the steps on the instance's timeline.
type installTimeline struct {
	client     *api.Client
	id         imprint.InstanceID
	generation imprint.Generation
	host, disk string
	image      string
}

// Report implements [install.Timeline].
func (t *installTimeline) Report(ctx context.Context, id imprint.Digest, step imprint.InstallStep, digest imprint.Digest, detail string) error {
	const most = 4096 // characters that a server takes, of which it keeps less
	if text := []rune(detail); len(text) > most {
		detail = string(text[:most])
	}
	_, err := t.client.ReportInstallation(ctx, string(t.id), api.InstallReport{
		ID: id, Generation: t.generation, Step: step, Host: t.host, Disk: t.disk, Image: t.image, Digest: digest, Detail: detail,
	})
	return err
}

// parseSize reads a number of bytes with K, M, G or T, which are powers of 1024; "" is 0.
func parseSize(s string) (int64, error) {
	if s == "" {
		return 0, nil
	}
	digits := strings.TrimRight(strings.TrimSuffix(strings.TrimSuffix(s, "B"), "i"), "KMGT")
	shift := map[string]uint{"": 0, "K": 10, "M": 20, "G": 30, "T": 40}
	unit, known := shift[strings.TrimSuffix(strings.TrimSuffix(strings.TrimPrefix(s, digits), "B"), "i")]
	n, err := strconv.ParseInt(digits, 10, 64)
	const sector = 512
	if err != nil || !known || n <= 0 || n > 1<<62>>unit || n<<unit%sector != 0 {
		return 0, imprint.Errorf(imprint.Invalid, "read", "size "+s, "it is no size of a disk").WithHint("write it as 10G, 512M or a number of bytes that is a multiple of %d", sector)
	}
	return n << unit, nil
}
