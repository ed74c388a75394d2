package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"imprint"
	"imprint/internal/helpervm"
	"imprint/internal/job"
	"imprint/internal/osdef"
)

// osOptions are the flags of the verbs below "imprint os".
type osOptions struct {
	path  []string
	trust string
}

func (o *osOptions) flags(c *cobra.Command) {
	f := c.Flags()
	if c.Runnable() && c.HasSubCommands() || c.Name() == "os" {
		f = c.PersistentFlags() // of all verbs below it
	}
	f.StringSliceVar(&o.path, "os-path", osdef.DefaultPath(), "where OS definitions are looked for, in this order")
	f.StringVar(&o.trust, "trust-file", osdef.DefaultTrust, "the `file` that lists the definitions that may run on this host")
}

func (p *program) osCommand() *cobra.Command {
	var o osOptions
	c := group(&cobra.Command{
		Use:   "os",
		Short: "Look at OS definitions, and say which may run on this host",
		Long: `Look at the OS definitions of this host, which have the interface of Ganeti (API
version 20), and say which may run on it. Scripts run inside a helper VM unless the
operator trusts the definition as it is; then they run on the host, in a cage.
docs/howto/os-definitions.md says how one is written.`,
	})
	o.flags(c)
	c.AddCommand(p.osListCommand(&o), p.osShowCommand(&o), p.osCheckCommand(&o), p.osTrustCommand(&o), p.osDistrustCommand(&o))
	return c
}

// osView is a definition as people and programs see it.
type osView struct {
	Name     string         `json:"name"`
	Dir      string         `json:"dir"`
	Variants []string       `json:"variants,omitempty"`
	Create   string         `json:"create"` // where its create runs
	Digest   imprint.Digest `json:"digest"`
	Params   []osParam      `json:"params,omitempty"`
	Warnings []string       `json:"warnings,omitempty"`
	Problems []string       `json:"problems,omitempty"`
}

type osParam struct {
	Name        string             `json:"name"`
	Type        osdef.Type         `json:"type"`
	Required    bool               `json:"required,omitempty"`
	Visibility  imprint.Visibility `json:"visibility,omitempty"`
	Default     string             `json:"default,omitempty"`
	Enum        []string           `json:"enum,omitempty"`
	Description string             `json:"description,omitempty"`
}

func (o *osOptions) view(d *osdef.Definition) osView {
	v := osView{Name: d.Name, Dir: d.Dir, Variants: d.Variants, Digest: d.Digest, Problems: d.Problems}
	where, err := (&osdef.Runner{Trust: osdef.Trust{Path: o.trust}}).Where(d, osdef.Create)
	switch {
	case err != nil:
		v.Create = "refused"
		v.Warnings = append(v.Warnings, err.Error())
	case len(where) == 2:
		v.Create = "host and VM"
	case len(where) == 1 && where[0] == osdef.OnHost:
		v.Create = "host"
	default:
		v.Create = "VM"
	}
	if d.Schema.SecretsInEnvironment {
		v.Warnings = append(v.Warnings, "it wants secret values in the environment of its scripts, where every process of the same user can read them")
	}
	if where != nil && where[0] == osdef.OnHost && d.Schema.Privileged {
		v.Warnings = append(v.Warnings, "its scripts run on this host as root, and may mount")
	}
	for _, p := range d.Schema.Params {
		v.Params = append(v.Params, osParam{p.Name, p.Type, p.Required, p.Visibility, p.Default, p.Enum, p.Description})
	}
	return v
}

func (p *program) osListCommand(o *osOptions) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List OS definitions, and where their scripts run", Args: noArgs,
		RunE: func(*cobra.Command, []string) error {
			all, err := osdef.List(o.path)
			if err != nil {
				return err
			}
			if len(all) == 0 && p.output == asTable {
				_, err := fmt.Fprintf(p.err, "No OS definitions in %s.\n", strings.Join(o.path, ", "))
				return err
			}
			views := []osView{}
			for _, d := range all {
				views = append(views, o.view(d))
			}
			return p.print(views, func(w io.Writer) {
				row(w, "NAME", "VARIANTS", "CREATE RUNS IN", "STATE", "DIRECTORY")
				for _, v := range views {
					state := "usable"
					if len(v.Problems) > 0 {
						state = "invalid: " + v.Problems[0]
					}
					row(w, v.Name, orNone(strings.Join(v.Variants, ", ")), v.Create, state, v.Dir)
				}
			})
		},
	}
}

func (p *program) osShowCommand(o *osOptions) *cobra.Command {
	return &cobra.Command{
		Use: "show NAME", Short: "Show an OS definition and its parameters",
		Args: exactArgs("an OS definition"), ValidArgsFunction: o.complete,
		RunE: func(_ *cobra.Command, args []string) error {
			d, err := osdef.Find(o.path, args[0])
			if err != nil {
				return err
			}
			v := o.view(d)
			return p.print(v, func(w io.Writer) {
				row(w, "Name", v.Name)
				row(w, "Directory", v.Dir)
				row(w, "Variants", orNone(strings.Join(v.Variants, ", ")))
				row(w, "Create runs in", v.Create)
				row(w, "Digest", "sha256:"+string(v.Digest))
				for _, text := range v.Warnings {
					row(w, "Warning", text)
				}
				for _, text := range v.Problems {
					row(w, "Problem", text)
				}
				row(w, "")
				row(w, "PARAMETER", "TYPE", "REQUIRED", "VISIBILITY", "DEFAULT", "DESCRIPTION")
				for _, one := range v.Params {
					required := "-"
					if one.Required {
						required = "yes"
					}
					kind := string(one.Type)
					if one.Enum != nil {
						kind = strings.Join(one.Enum, "|")
					}
					row(w, one.Name, kind, required, orNone(string(one.Visibility)), orNone(one.Default), one.Description)
				}
			})
		},
	}
}

func (p *program) osCheckCommand(o *osOptions) *cobra.Command {
	return &cobra.Command{
		Use: "check [NAME]", Short: "Say what is wrong with OS definitions",
		Args: atMostOne, ValidArgsFunction: o.complete,
		RunE: func(_ *cobra.Command, args []string) error {
			var all []*osdef.Definition
			if len(args) == 1 {
				d, err := osdef.Find(o.path, args[0])
				if err != nil {
					return err
				}
				all = append(all, d)
			} else {
				var err error
				if all, err = osdef.List(o.path); err != nil {
					return err
				}
			}
			if len(all) == 0 {
				_, err := fmt.Fprintf(p.err, "No OS definitions in %s.\n", strings.Join(o.path, ", "))
				return err
			}
			bad := 0
			for _, d := range all {
				if len(d.Problems) == 0 {
					fmt.Fprintf(p.out, "%s: usable\n", d.Name)
					continue
				}
				bad++
				for _, problem := range d.Problems {
					fmt.Fprintf(p.out, "%s: %s\n", d.Name, problem)
				}
			}
			if bad > 0 {
				return imprint.Errorf(imprint.Invalid, "check", "OS definitions", "%d of %d cannot be used", bad, len(all))
			}
			return nil
		},
	}
}

func (p *program) osTrustCommand(o *osOptions) *cobra.Command {
	return &cobra.Command{
		Use: "trust NAME", Short: "Let an OS definition, as it is now, run on this host",
		Long: `Let an OS definition, as it is now, run on this host. Read its scripts first: they
run in a cage, as nobody unless they ask to be root, but they are not in a VM. Any change
of its files takes the trust away. What the scripts read elsewhere, such as in
/etc/default, is not part of it.`,
		Args: exactArgs("an OS definition"), ValidArgsFunction: o.complete,
		RunE: func(_ *cobra.Command, args []string) error {
			d, err := osdef.Find(o.path, args[0])
			if err != nil {
				return err
			}
			if err := (osdef.Trust{Path: o.trust}).Mark(d); err != nil {
				return err
			}
			_, err = fmt.Fprintf(p.out, "%s may run on this host as it is: sha256:%s\n", d.Name, d.Digest)
			return err
		},
	}
}

func (p *program) osDistrustCommand(o *osOptions) *cobra.Command {
	return &cobra.Command{
		Use: "distrust NAME", Short: "Let an OS definition run in helper VMs only",
		Args: exactArgs("an OS definition"), ValidArgsFunction: o.complete,
		RunE: func(_ *cobra.Command, args []string) error {
			if err := (osdef.Trust{Path: o.trust}).Unmark(args[0]); err != nil {
				return err
			}
			_, err := fmt.Fprintf(p.out, "%s runs in helper VMs only\n", args[0])
			return err
		},
	}
}

// complete offers the names of definitions to the shell.
func (o *osOptions) complete(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	var names []string
	if all, err := osdef.List(o.path); err == nil && len(args) == 0 {
		for _, d := range all {
			names = append(names, d.Name)
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// osVM runs an untrusted script in a helper VM made like vm. Disks are those of the
// script, by path, but for what is open already.
func osVM(vm helpervm.Config, open map[string]*os.File) func(context.Context, *osdef.VM) (*job.Result, error) {
	return func(ctx context.Context, s *osdef.VM) (*job.Result, error) {
		c := vm
		c.Disks, c.Streams = nil, map[string]helpervm.Stream{}
		for _, d := range s.Disks {
			c.Disks = append(c.Disks, helpervm.Disk{Path: d.Path, ReadOnly: d.ReadOnly})
			if f := open[d.Path]; f != nil {
				c.Disks[len(c.Disks)-1] = helpervm.Disk{File: f, ReadOnly: d.ReadOnly}
			}
		}
		c.Disks = append(c.Disks, helpervm.Disk{File: s.Archive, ReadOnly: true})
		c.Network = s.Network
		for name, one := range s.Streams {
			stream := helpervm.Stream{} // a nil interface is none
			if one.In != nil {
				stream.In = one.In
			}
			if one.Out != nil {
				stream.Out = one.Out
			}
			c.Streams[name] = stream
		}
		c.Log = func(l job.Log) { s.Log(l.Line) }
		return helpervm.Run(ctx, c, s.Job)
	}
}
