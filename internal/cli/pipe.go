package cli

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"
	"unicode"

	"github.com/spf13/cobra"

	"imprint"
	"imprint/api"
)

func (p *program) pipeCommand() *cobra.Command {
	c := group(&cobra.Command{
		Use:   "pipe",
		Short: "Exchange messages with a machine over its channels",
		Long: `Exchange messages with a machine: what is written here, root of the machine
reads, and the other way round. Every instance has the pipe "default" and those
that its manifest lists under pipes. Messages wait in the memory of the host that
serves the instance: they end with its process and with the instance's generation.`,
	})
	c.AddCommand(p.pipeListCommand(), p.pipeWriteCommand(), p.pipeReadCommand())
	return c
}

func (p *program) pipeListCommand() *cobra.Command {
	return &cobra.Command{
		Use: "list NAME", Short: "Show a machine's pipes and what waits in them",
		Args: exactArgs("an instance"), ValidArgsFunction: p.completeInstances,
		RunE: func(c *cobra.Command, args []string) error {
			client := p.client()
			defer client.Close()
			list, err := client.Pipes(c.Context(), args[0])
			if err != nil {
				return err
			}
			return p.print(list, func(w io.Writer) {
				row(w, "PIPE", "TO THE MACHINE", "FROM THE MACHINE")
				for _, one := range list {
					row(w, one.Name, describeWaiting(one.ToMachine), describeWaiting(one.FromMachine))
				}
			})
		},
	}
}

func describeWaiting(w api.Waiting) string {
	if w.Messages == 0 {
		return "-"
	}
	return fmt.Sprintf("%d messages, %d bytes", w.Messages, w.Bytes)
}

// pipePause is how long a writer waits before it tries again.
const pipePause = 200 * time.Millisecond

func (p *program) pipeWriteCommand() *cobra.Command {
	var wait time.Duration
	c := &cobra.Command{
		Use: "write NAME [PIPE]", Short: "Write standard input to a machine's pipe",
		Long: `Write standard input to a machine's pipe, as it comes, in messages of at most
8192 bytes. While the pipe is full it waits for the machine to read. What was
written before an error stays written, and the error says how much that is.`,
		Example: "  imprint pipe write web-1 < hello.txt\n  imprint pipe write web-1 install < install.log",
		Args:    oneOrTwo("an instance", "a pipe"), ValidArgsFunction: p.completePipes,
		RunE: func(c *cobra.Command, args []string) error {
			client := p.client()
			defer client.Close()
			ref, pipe := args[0], pipeOf(args)
			written := 0
			buf := make([]byte, imprint.MaxMessage)
			for {
				n, rerr := p.in.Read(buf)
				if n > 0 {
					if err := writeMessage(c.Context(), client, ref, pipe, buf[:n], wait); err != nil {
						if written > 0 {
							fmt.Fprintf(p.err, "%d bytes were written before this:\n", written)
						}
						return err
					}
					written += n
				}
				switch {
				case errors.Is(rerr, io.EOF) && written == 0:
					return imprint.Errorf(imprint.Invalid, "write pipe of", ref, "standard input is empty").
						WithHint("give it something: echo hello | imprint pipe write %s", ref)
				case errors.Is(rerr, io.EOF):
					return nil
				case rerr != nil:
					return imprint.Errorf(imprint.Unavailable, "read", "standard input", "%w", rerr)
				}
			}
		},
	}
	c.Flags().DurationVar(&wait, "wait", time.Minute, "how long to try while the pipe is full or the connection ends")
	return c
}

// writeMessage writes one message, again and again while the pipe is full, and once
// an attempt may have come through of which the answer is lost.
func writeMessage(ctx context.Context, client *api.Client, ref, pipe string, message []byte, wait time.Duration) error {
	id := rand.Text() // the same for each attempt: a lost answer doubles nothing
	lost := false
	for end := time.Now().Add(wait); ; {
		err := client.WritePipe(ctx, ref, pipe, id, message)
		cut := errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
		gone := errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED)
		lost = lost || cut
		again := imprint.KindOf(err) == imprint.Exhausted || cut || lost && gone
		if !again || !time.Now().Add(pipePause).Before(end) {
			return err
		}
		select {
		case <-time.After(pipePause):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (p *program) pipeReadCommand() *cobra.Command {
	var wait time.Duration
	var follow, keep bool
	c := &cobra.Command{
		Use: "read NAME [PIPE]", Short: "Print what a machine has written to a pipe",
		Long: `Print the oldest message that the machine has written to a pipe, and take it out
once it is printed: a reader that dies before gets it again. With --follow all that
comes, until it is interrupted. If there is nothing to read the exit code is 4.

With "-o json" each message is a line with its bytes in base64 and its receipt.`,
		Example: "  imprint pipe read web-1 --wait 1m\n  imprint pipe read web-1 console --follow > console.log",
		Args:    oneOrTwo("an instance", "a pipe"), ValidArgsFunction: p.completePipes,
		RunE: func(c *cobra.Command, args []string) error {
			if follow && keep {
				return usagef(c, "--follow would print the same message for ever with --keep")
			}
			client := p.client()
			defer client.Close()
			ref, pipe := args[0], pipeOf(args)
			for end := time.Now().Add(wait); ; {
				left := max(0, min(time.Until(end), api.MaxPipeWait*time.Second))
				if follow {
					left = api.MaxPipeWait * time.Second
				}
				message, receipt, err := client.ReadPipe(c.Context(), ref, pipe, int((left+time.Second-1)/time.Second))
				switch {
				case err != nil:
					return err
				case receipt == "" && (follow || time.Now().Before(end)):
					continue
				case receipt == "":
					return imprint.Errorf(imprint.NotFound, "read pipe of", ref, "nothing is in pipe %s", pipe).
						WithHint("wait for something with --wait 1m, or for all that comes with --follow")
				}
				if err := p.printMessage(pipe, message, receipt); err != nil {
					return err
				}
				if keep {
					return nil
				}
				if err := client.TakePipe(c.Context(), ref, pipe, receipt); err != nil || !follow {
					return err
				}
			}
		},
	}
	c.Flags().DurationVar(&wait, "wait", 0, "how long to wait for a message")
	c.Flags().BoolVar(&follow, "follow", false, "go on with what comes")
	c.Flags().BoolVar(&keep, "keep", false, "leave the message in the pipe")
	return c
}

func (p *program) printMessage(pipe string, message []byte, receipt string) error {
	if p.output != asTable {
		return json.NewEncoder(p.out).Encode(struct {
			Pipe    string `json:"pipe"`
			Receipt string `json:"receipt"`
			Message []byte `json:"message"`
		}{pipe, receipt, message})
	}
	if isTerminal(p.out) {
		message = harmless(message)
	}
	_, err := p.out.Write(message)
	return err
}

// pipeOf is the pipe that the arguments name.
func pipeOf(args []string) string {
	if len(args) > 1 {
		return args[1]
	}
	return imprint.DefaultPipe
}

// completePipes offers instances' names, and then the pipes of the one named.
func (p *program) completePipes(c *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
	if len(args) != 1 {
		return p.completeInstances(c, args, typed)
	}
	ctx, cancel := context.WithTimeout(c.Context(), time.Second)
	defer cancel()
	client := p.client()
	defer client.Close()
	names := []string{imprint.DefaultPipe}
	if one, err := client.Get(ctx, args[0]); err == nil {
		names = append(names, one.Spec.Pipes...)
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// harmless replaces in a machine's message what a terminal would obey. Root of
// the machine is not root of the operator's terminal.
func harmless(message []byte) []byte {
	return bytes.Map(func(r rune) rune {
		if r == '\n' || r == '\t' || unicode.IsPrint(r) {
			return r
		}
		return unicode.ReplacementChar
	}, message)
}
