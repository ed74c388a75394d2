package cli

import (
	"cmp"
	"context"
	"encoding/xml"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"imprint"
	"imprint/api"
	"imprint/internal/tap"
)

// adoptTime is how long an interface that was asked for may take to be served.
const adoptTime = 10 * time.Second

func (p *program) nicCommand() *cobra.Command {
	c := group(&cobra.Command{
		Use:   "nic",
		Short: "Show an instance's link-local interface, or give it one that somebody else made",
	})
	c.AddCommand(&cobra.Command{
		Use:   "show NAME",
		Short: "Show the interface, its MAC and its address",
		Long: `Show the interface that leads from the host to the instance, who makes it, and
the MAC and the address that belong to the guest on it.`,
		Args: exactArgs("an instance"), ValidArgsFunction: p.completeInstances,
		RunE: func(c *cobra.Command, args []string) error {
			n, err := p.awaitNIC(c.Context(), args[0])
			if err != nil {
				return err
			}
			return p.print(n, func(w io.Writer) {
				row(w, "Host", n.Host)
				row(w, "Interface", cmp.Or(n.Interface, "none yet"))
				row(w, "Made by", n.maker())
				row(w, "MAC", n.MAC)
				row(w, "Address", n.IPv4)
				if n.Problem != "" {
					row(w, "Problem", n.Problem)
				}
			})
		},
	}, &cobra.Command{
		Use:   "libvirt NAME",
		Short: "Print the interface as libvirt's domain XML wants it",
		Long: `Print the <interface> element for the <devices> of the instance's libvirt domain. A
tap of imprint's is named, and libvirt leaves it as it is; where the configuration
says adopt, libvirt makes the interface, and its MAC tells imprint whose it is.`,
		Example: "  imprint nic libvirt web-1",
		Args:    exactArgs("an instance"), ValidArgsFunction: p.completeInstances,
		RunE: func(c *cobra.Command, args []string) error {
			n, err := p.awaitNIC(c.Context(), args[0])
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(p.out, n.libvirt())
			return err
		},
	}, p.nicAdoptCommand())
	return c
}

func (p *program) nicAdoptCommand() *cobra.Command {
	var name, mac string
	c := &cobra.Command{
		Use:   "adopt NAME --interface INTERFACE",
		Short: "Ask imprint to serve an interface of this host as the instance's",
		Long: `Ask the imprint serve or imprint host of this machine to adopt an interface that
somebody else made as the one that leads to the instance. NAME is its name,
TENANT/NAME, ID, or one of its certificate names. A pattern under adopt in the
configuration has to fit both the instance and the interface.

The request is the interface's alias, "imprint:NAME", so it takes CAP_NET_ADMIN
here and no server, stays when imprint starts anew and goes with the interface. The
command returns when the interface is served, and so is filtered.`,
		Example: "  imprint nic adopt web-1 --interface vnet3\n  imprint nic adopt \"$INSTANCE\" --interface \"$INTERFACE\" --mac \"$MAC\"",
		Args:    exactArgs("an instance"),
		RunE: func(c *cobra.Command, args []string) error {
			var want tap.MAC
			if mac != "" {
				var err error
				if want, err = tap.ParseMAC(mac); err != nil {
					return err
				}
			}
			ctx, cancel := context.WithTimeout(c.Context(), adoptTime)
			defer cancel()
			return tap.Request(ctx, name, args[0], want)
		},
	}
	c.Flags().StringVar(&name, "interface", "", "the interface on this host")
	c.Flags().StringVar(&mac, "mac", "", "the guest's MAC there, if the platform chose it; it goes on record")
	c.MarkFlagRequired("interface")
	return c
}

// nicView is an instance's interface as it is shown.
type nicView struct {
	Host      imprint.HostName `json:"host"`
	Interface string           `json:"interface,omitempty"`
	Adopts    string           `json:"adopts,omitempty"`
	MAC       string           `json:"mac"`
	IPv4      string           `json:"ipv4"`
	Problem   string           `json:"problem,omitempty"`
}

func (n *nicView) maker() string {
	if n.Adopts == "" {
		return "imprint"
	}
	return "the platform; imprint adopts " + n.Adopts
}

// awaitNIC returns the instance's interface once its host has chosen what belongs
// to it, which it does a moment after the instance was reserved.
func (p *program) awaitNIC(ctx context.Context, ref string) (*nicView, error) {
	client := p.client()
	defer client.Close()
	for end := time.Now().Add(socketPatience); ; {
		d, err := client.Describe(ctx, ref)
		if err != nil {
			return nil, err
		}
		if !slices.Contains(d.Instance.Spec.Channels, imprint.LinkLocal) {
			return nil, imprint.Errorf(imprint.Conflict, "show interface of", d.Instance.Ref, "it does not have the channel %s", imprint.LinkLocal).
				WithHint("create it with channels: [%s]", imprint.LinkLocal)
		}
		i := slices.IndexFunc(d.Ports, func(p api.Port) bool { return p.Channel == imprint.LinkLocal })
		nic := d.Instance.NIC
		if i >= 0 && nic != nil && (d.Ports[i].Interface != "" || d.Ports[i].Adopts != "") {
			port := d.Ports[i]
			return &nicView{Host: nic.Host, Interface: port.Interface, Adopts: port.Adopts, MAC: nic.MAC, IPv4: nic.IPv4.String(), Problem: port.Problem}, nil
		}
		if time.Now().After(end) {
			problem := "no host serves it"
			if i >= 0 && d.Ports[i].Problem != "" {
				problem = d.Ports[i].Problem
			}
			return nil, imprint.Errorf(imprint.Unavailable, "show interface of", d.Instance.Ref, "%s", problem).
				WithHint("see: imprint describe %s", d.Instance.Ref)
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// libvirt returns the interface in the form of libvirt's domain XML
// (libvirt.org/formatdomain.html, generic ethernet connection). libvirt neither
// makes nor touches a tap that is not managed.
func (n *nicView) libvirt() string {
	var b strings.Builder
	attribute := func(s string) string {
		var b strings.Builder
		xml.EscapeText(&b, []byte(s)) // to a buffer it never fails
		return b.String()
	}
	fmt.Fprintf(&b, "<interface type='ethernet'>\n  <mac address='%s'/>\n", attribute(n.MAC))
	switch {
	case n.Adopts == "":
		fmt.Fprintf(&b, "  <target dev='%s' managed='no'/>\n", attribute(n.Interface))
	case !strings.ContainsAny(n.Adopts, `*?[\`):
		fmt.Fprintf(&b, "  <target dev='%s'/>\n", attribute(n.Adopts))
	}
	b.WriteString("  <model type='virtio'/>\n</interface>")
	return b.String()
}
