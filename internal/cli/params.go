package cli

import (
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"imprint"
)

func (p *program) setCommand() *cobra.Command {
	var file, env, visibility string
	c := &cobra.Command{
		Use:   "set NAME PARAM",
		Short: "Give a parameter its value, or declare it",
		Long: `Give a parameter its value: from a file, the environment or standard input, never
from the command line. Secret values live in the memory of the serving host; after
its restart, and after a rebirth, they are given again.

With --visibility a parameter is declared that the instance does not have yet, or
one that it has is read by others from now on: what was stored of it before is gone.
The machine's generation and all other values stay.`,
		Example: "  imprint set web-1 join-key < key\n  imprint set web-1 join-key --file key\n" +
			"  imprint set web-1 api-token --visibility private --env API_TOKEN",
		Args:              exactArgs("an instance", "a parameter"),
		ValidArgsFunction: p.completeInstances,
		RunE: func(c *cobra.Command, args []string) error {
			value, err := p.readValue(file, env)
			if err != nil {
				return err
			}
			client := p.client()
			defer client.Close()
			if err := client.DeclareParam(c.Context(), args[0], args[1], imprint.Visibility(visibility), value); err != nil {
				return err
			}
			fmt.Fprintf(p.out, "%s: %s is set\n", args[0], args[1])
			return nil
		},
	}
	c.Flags().StringVar(&file, "file", "", "read the value from this file")
	c.Flags().StringVar(&env, "env", "", "read the value from this environment variable")
	c.Flags().StringVar(&visibility, "visibility", "", "who may read it: public, private or secret; declares the parameter")
	c.MarkFlagsMutuallyExclusive("file", "env")
	c.MarkFlagFilename("file")
	c.RegisterFlagCompletionFunc("visibility", cobra.FixedCompletions(
		[]string{string(imprint.Public), string(imprint.Private), string(imprint.SecretOnly)}, cobra.ShellCompDirectiveNoFileComp))
	return c
}

func (p *program) unsetCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "unset NAME PARAM",
		Short: "Remove a parameter and its value",
		Long: `Remove a parameter and its value, unless the instance's image, packages or OS
definition need it. The machine may have read it before.`,
		Args: exactArgs("an instance", "a parameter"), ValidArgsFunction: p.completeInstances,
		RunE: func(c *cobra.Command, args []string) error {
			client := p.client()
			defer client.Close()
			if err := client.DeleteParam(c.Context(), args[0], args[1]); err != nil {
				return err
			}
			fmt.Fprintf(p.out, "%s: %s is removed\n", args[0], args[1])
			return nil
		},
	}
}

func (p *program) rebirthCommand() *cobra.Command {
	var params []string
	c := &cobra.Command{
		Use:   "rebirth NAME",
		Short: "Start an instance's next generation, as for a reinstall",
		Long: `Start an instance's next generation. The certificate of the present one is
revoked and the machine enrols anew with a new key.

Public and private parameters keep their values, unless --param gives new ones.
Secret ones have to be given again, here or with "imprint set"; those that are
missing are named.`,
		Example:           "  imprint rebirth web-1\n  imprint rebirth web-1 --param join-key=file:key --param db-password=env:DB_PASSWORD",
		Args:              exactArgs("an instance"),
		ValidArgsFunction: p.completeInstances,
		RunE: func(c *cobra.Command, args []string) error {
			values, err := p.readParams(params)
			if err != nil {
				return err
			}
			client := p.client()
			defer client.Close()
			out, err := client.RebirthWith(c.Context(), args[0], values)
			if err != nil {
				return err
			}
			one := &out.Instance
			if len(out.Missing) > 0 {
				fmt.Fprintf(p.err, "to be given again: %s\n  hint: imprint set %s %s\n", strings.Join(out.Missing, ", "), one.Ref, out.Missing[0])
			}
			return p.print(one, func(w io.Writer) {
				fmt.Fprintf(w, "%s reborn: generation %d is %s\n", one.Ref, one.Generation, one.Enrolment.State)
			})
		},
	}
	p.paramFlag(c, &params)
	return c
}

// paramFlag adds the flag by which a verb takes values of parameters.
func (p *program) paramFlag(c *cobra.Command, to *[]string) {
	c.Flags().StringArrayVar(to, "param", nil, "a new value of a parameter, `NAME=SOURCE`: file:PATH, env:VARIABLE, stdin or prompt; repeatable")
}

// readParams fetches the values of NAME=SOURCE.
func (p *program) readParams(params []string) (map[string]imprint.Secret, error) {
	values := map[string]imprint.Secret{}
	for _, text := range params {
		name, source, ok := strings.Cut(text, "=")
		kind, where, _ := strings.Cut(source, ":")
		invalid := func(format string, args ...any) *imprint.Error {
			return imprint.Errorf(imprint.Invalid, "use", "--param "+name, format, args...).
				WithHint("say where its value is: --param %s=file:PATH, env:VARIABLE, stdin or prompt", name)
		}
		if _, twice := values[name]; twice {
			return nil, invalid("it is there twice")
		}
		var value imprint.Secret
		var err error
		switch {
		case !ok || name == "":
			return nil, imprint.Errorf(imprint.Invalid, "use", "--param", "it is not NAME=SOURCE").WithHint("write it like --param join-key=file:PATH")
		case kind == "file" && where != "":
			value, err = p.readValue(where, "")
		case kind == "env" && where != "":
			value, err = p.readValue("", where)
		case source == "stdin":
			if p.asker() != nil {
				return nil, invalid("standard input is a terminal")
			}
			value, err = p.readValue("", "")
		case source == "prompt":
			ask := p.asker()
			if ask == nil {
				return nil, invalid("there is no terminal to ask on")
			}
			value, err = ask("Value of " + name)
		default: // it may be the value itself, which is not shown
			return nil, invalid("what follows is not a source, and a value is never given on the command line")
		}
		if err != nil {
			return nil, err
		}
		values[name] = value
	}
	return values, nil
}

// readValue reads one value from a file, the environment or standard input. A
// single newline at its end, which editors and echo add, is not part of it.
func (p *program) readValue(file, env string) (imprint.Secret, error) {
	var b []byte
	switch {
	case env != "":
		text, ok := os.LookupEnv(env)
		if !ok {
			return imprint.Secret{}, imprint.Errorf(imprint.NotFound, "read", "environment variable "+env, "it is not set")
		}
		b = []byte(text)
	default:
		in := p.in
		if file != "" {
			f, err := os.Open(file)
			if err != nil {
				return imprint.Secret{}, fileError("read", file, err)
			}
			defer f.Close()
			in = f
		} else if ask := p.asker(); ask != nil {
			return ask("Value of the parameter")
		}
		var err error
		if b, err = io.ReadAll(io.LimitReader(in, imprint.MaxParamLen+2)); err != nil {
			return imprint.Secret{}, imprint.Errorf(imprint.Unavailable, "read", "value", "%w", err)
		}
	}
	if n := len(b); n > 0 && b[n-1] == '\n' {
		b = b[:n-1]
	}
	if len(b) > imprint.MaxParamLen {
		return imprint.Secret{}, imprint.Errorf(imprint.Exhausted, "read", "value", "more than %d bytes", imprint.MaxParamLen)
	}
	return imprint.NewSecret(b), nil
}
