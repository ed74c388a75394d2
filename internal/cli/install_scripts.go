package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"imprint"
	"imprint/api"
	"imprint/internal/helpervm"
	"imprint/internal/osdef"
)

// installScripts are those of the instance's OS definition, and the values of the
// parameters that it and the sources of the installation need.
type installScripts struct {
	client   *api.Client
	instance *imprint.Instance
	named    []string // parameters that hold credentials
	def      *osdef.Definition
	runner   osdef.Runner
	vm       helpervm.Config
	disk     string
	values   map[string]imprint.Secret
}

// planScripts finds the OS definition that the instance names, if it names one, and
// checks what can be checked without values.
func (p *program) planScripts(client *api.Client, i *api.Instance, o *installOptions, vm helpervm.Config, credentials []string) (*installScripts, error) {
	s := &installScripts{
		client: client, named: slices.DeleteFunc(credentials, func(name string) bool { return name == "" }), vm: vm,
		instance: &imprint.Instance{ID: i.ID, Spec: i.Spec, Generation: i.Generation, NIC: i.NIC, Created: i.Created, Updated: i.Updated},
	}
	if i.Spec.OS == nil {
		return s, nil
	}
	var err error
	if s.disk, err = filepath.Abs(o.disk); err != nil {
		return nil, imprint.Errorf(imprint.Unavailable, "find", "working directory", "%w", err)
	}
	if s.def, err = osdef.Find(o.os.path, i.Spec.OS.Name); err != nil {
		return nil, err
	}
	if err := s.def.Usable(i.Spec.OS.Variant); err != nil {
		return nil, err
	}
	if err := s.def.Schema.Check(i.Spec.Params, nil, ""); err != nil {
		return nil, err
	}
	s.runner = osdef.Runner{Trust: osdef.Trust{Path: o.os.trust}, Time: o.helperLimit}
	if _, err := s.runner.Where(s.def, osdef.Create); err != nil {
		return nil, err
	}
	if o.showLog {
		s.runner.Log = func(half osdef.Half, line string) { fmt.Fprintf(p.err, "%s on the %s: %s\n", s.def.Name, half, line) }
	}
	return s, nil
}

// prepare fetches the values, and has the definition verify its parameters. Nothing
// was done to the disk.
func (s *installScripts) prepare(ctx context.Context) error {
	if s.def == nil && len(s.named) == 0 {
		return nil
	}
	var err error
	if s.values, err = s.client.InstallValues(ctx, string(s.instance.ID)); err != nil || s.def == nil {
		return err
	}
	return s.run(ctx, osdef.Verify, nil)
}

// value returns the value of a parameter that holds credentials.
func (s *installScripts) value(name string) (imprint.Secret, error) {
	v, ok := s.values[name]
	if !ok {
		return imprint.Secret{}, imprint.Errorf(imprint.NotFound, "read", "parameter "+name, "it has no value").WithHint("give it one: imprint set %s %s", s.instance.Ref(), name)
	}
	return v, nil
}

// create runs the scripts for the disk, which is open.
func (s *installScripts) create(ctx context.Context, disk *os.File) (string, error) {
	if err := s.run(ctx, osdef.Create, disk); err != nil {
		return "", err
	}
	return fmt.Sprintf("create of %s", imprint.OS{Name: s.def.Name, Variant: s.instance.Spec.OS.Variant}), nil
}

func (s *installScripts) run(ctx context.Context, op osdef.Op, disk *os.File) error {
	in := &osdef.Input{Instance: s.instance, Values: s.values, Reinstall: s.instance.Generation > 1}
	open := map[string]*os.File{}
	if disk != nil {
		info, err := disk.Stat()
		if err != nil {
			return imprint.Errorf(imprint.Unavailable, "look at", s.disk, "%w", err)
		}
		size, err := disk.Seek(0, io.SeekEnd)
		if err != nil {
			return imprint.Errorf(imprint.Unavailable, "look at", s.disk, "%w", err)
		}
		in.Disks = []osdef.Disk{{Path: s.disk, Size: size, File: info.Mode().IsRegular()}}
		open[s.disk] = disk
	}
	r := s.runner
	r.VM = osVM(s.vm, open)
	return r.Run(ctx, s.def, op, s.instance.Spec.OS.Variant, in, osdef.Stdio{})
}

// describe says for a dry run where the scripts would run.
func (s *installScripts) describe() string {
	where, err := s.runner.Where(s.def, osdef.Create)
	if err != nil {
		return err.Error()
	}
	var at []string
	for _, half := range where {
		at = append(at, map[osdef.Half]string{osdef.OnHost: "on this host, in a cage", osdef.InVM: "in the helper VM"}[half])
	}
	return fmt.Sprintf("run the scripts of the OS definition %s %s", s.instance.Spec.OS, strings.Join(at, " and "))
}
