package cli

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"imprint"
	"imprint/api"
)

func (p *program) describeCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "describe NAME",
		Short:             "Show an instance's spec, status and timeline",
		Args:              exactArgs("an instance"),
		ValidArgsFunction: p.completeInstances,
		RunE: func(c *cobra.Command, args []string) error {
			client := p.client()
			defer client.Close()
			d, err := client.Describe(c.Context(), args[0])
			if err != nil {
				return err
			}
			return p.print(d, func(w io.Writer) { p.describe(w, d) })
		},
	}
}

func (p *program) describe(w io.Writer, d *api.Description) {
	i := &d.Instance
	e := &i.Enrolment
	row(w, "Name", i.Ref)
	row(w, "ID", i.ID)
	row(w, "Host", describeHost(d.Host))
	row(w, "Certificate names", orNone(join(i.Spec.DNSNames, i.Spec.IPs)))
	row(w, "Channels", orNone(join(i.Spec.Channels)))
	for _, port := range d.Ports {
		row(w, "Port", describePort(port, i.NIC))
		if len(port.Dropped) > 0 {
			row(w, "Dropped packets", describeDrops(port.Dropped))
		}
	}
	if len(i.Spec.Users) > 0 {
		row(w, "Users", describeUsers(i.Spec.Users))
	}
	for n, param := range i.Spec.Params {
		label := ""
		if n == 0 {
			label = "Parameters"
		}
		row(w, label, describeParam(param, d))
	}
	row(w, "Generation", i.Generation)
	row(w, "State", p.stateText(e.State)+reason(e.Reason))
	if slices.Contains(i.Spec.Channels, imprint.LinkLocal) {
		row(w, "User data", describeBoot(e))
	}
	if e.Delivery != nil {
		row(w, "Payload", fmt.Sprintf("sha256:%s over %s, %s", e.Delivery.Payload, e.Delivery.Channel, when(e.Delivery.At)))
	}
	if c := e.Claim; c != nil {
		row(w, "Key", "sha256:"+string(c.Key))
		row(w, "Tier", tierText(c))
		if c.NeedsApproval && c.ApprovedBy == "" {
			row(w, "Waiting", "for approval: imprint approve "+i.Ref)
		}
	}
	if c := e.Certificate; c != nil {
		row(w, "Certificate", fmt.Sprintf("serial %s, %s to %s", c.Serial, when(c.NotBefore), when(c.NotAfter)))
		row(w, "Issuance log", c.Log)
	}
	if i.Installation != nil {
		row(w, "Installation", describeInstallation(i))
	}
	describeSetup(w, i)
	describeMedia(w, i)
	row(w, "")
	row(w, "TIME", "GEN", "EVENT", "CHANNEL", "DETAIL")
	for _, ev := range d.Timeline {
		row(w, when(ev.At), ev.Generation, ev.Kind, orNone(string(ev.Channel)), detail(ev.Detail))
	}
}

// describeInstallation says how far the installation of a disk is.
func describeInstallation(i *api.Instance) string {
	in := i.Installation
	s := fmt.Sprintf("%s, %s: generation %d on %s", in.Step, when(in.At), in.Generation, in.Disk)
	if in.Host != "" {
		s += " of " + in.Host
	}
	if in.Image != "" {
		s += ", from " + in.Image
	}
	if in.Digest != "" {
		s += fmt.Sprintf(" (sha256:%.16s)", in.Digest)
	}
	if in.Step == imprint.InstallFailed {
		s += ": " + in.Detail
	}
	return s
}

// describeMedia lists the media that nobody took away, with the remedy when they
// have done their work.
func describeMedia(w io.Writer, i *api.Instance) {
	label, overdue, partition := "Media", false, false
	for _, m := range i.Media {
		if m.State == imprint.MediumTaken {
			continue
		}
		token, given, state := "", "", "out"
		if m.Token {
			token = " with a one-time token"
		}
		if m.By != "" {
			given = "given to " + m.By + " "
		}
		if m.State == imprint.MediumLeft {
			state = fmt.Sprintf("not taken away, %s: %s", when(m.Settled), m.Detail)
		}
		row(w, label, fmt.Sprintf("%d: %s on %s%s, digest %.16s, %s%s; %s", m.Number, m.Dialect, m.Carrier, token, m.Digest, given, when(m.At), state))
		label, partition = "", partition || m.Carrier == "partition"
		overdue = overdue || m.State == imprint.MediumLeft || over(i, m.Generation)
	}
	if i.MediaForgotten > 0 {
		row(w, label, fmt.Sprintf("%d earlier ones were not reported to be taken away, and are no longer on record", i.MediaForgotten))
	}
	if overdue {
		row(w, "", "take it away: imprint media blank FILE --instance "+i.Ref)
		if partition {
			row(w, "", "from a disk: imprint media remove-partition DISK --label LABEL --instance "+i.Ref)
		}
		row(w, "", fmt.Sprintf("or if it is no more: imprint media forget %s NUMBER --because TEXT", i.Ref))
	}
}

func describePort(port api.Port, nic *imprint.NIC) string {
	what := string(port.Channel)
	of := port.Interface
	if port.Adopts != "" && of == "" {
		of = port.Adopts + ", which is not there yet"
	}
	if of != "" && nic != nil {
		what += fmt.Sprintf(": interface %s, MAC %s, address %s", of, nic.MAC, nic.IPv4)
	}
	switch {
	case port.Problem != "":
		return what + ": " + port.Problem
	case of != "":
		return what
	}
	if port.Channel == imprint.Neutron {
		return fmt.Sprintf("%s: imprint answers Neutron's agents", port.Channel)
	}
	way, state := "listens on", "not connected"
	if port.Dialled {
		way = "dials"
	}
	if port.Connected {
		state = "connected"
	}
	return fmt.Sprintf("%s: imprint %s %s; %s", what, way, port.Socket, state)
}

// describeDrops says what was dropped at an interface, in a fixed order.
func describeDrops(dropped map[string]uint64) string {
	var parts []string
	for _, reason := range slices.Sorted(maps.Keys(dropped)) {
		parts = append(parts, fmt.Sprintf("%d %s", dropped[reason], reason))
	}
	return strings.Join(parts, ", ")
}

// describeBoot says until when user data is served over the link-local network.
func describeBoot(e *api.Enrolment) string {
	switch {
	case !e.HomeAt.IsZero():
		return "withheld since the machine said that it has booted, " + when(e.HomeAt)
	case !e.ConfirmedAt.IsZero():
		return "withheld since a key is enrolled, " + when(e.ConfirmedAt)
	case !e.State.Open():
		return "withheld, because nobody may enrol"
	}
	return "served until the machine has booted, or the time for it is over"
}

func describeHost(h api.HostState) string {
	switch h.State {
	case api.HostConnected:
		return fmt.Sprintf("%s; connected since %s from %s", h.Name, when(h.Since), h.Address)
	case api.HostAway:
		return fmt.Sprintf("%s; not connected", h.Name)
	case api.HostUnknown:
		return fmt.Sprintf("%s; not this server, and not a hypervisor that was added", h.Name)
	}
	return string(h.Name)
}

func describeUsers(users []imprint.User) string {
	var list []string
	for _, u := range users {
		text := u.Name
		if u.Admin {
			text += " (administrator)"
		}
		list = append(list, text)
	}
	return strings.Join(list, ", ")
}

func describeParam(param imprint.Param, d *api.Description) string {
	switch {
	case param.Visibility == imprint.Public:
		return fmt.Sprintf("%s = %s (public)", param.Name, param.Value)
	case d.Host.State == api.HostAway && slices.Contains(d.Missing, param.Name):
		return fmt.Sprintf("%s (%s; whether it is at hand is known when host %s is back)", param.Name, param.Visibility, d.Host.Name)
	case slices.Contains(d.Missing, param.Name):
		return fmt.Sprintf("%s (%s; not at hand: give it with imprint set)", param.Name, param.Visibility)
	}
	return fmt.Sprintf("%s (%s)", param.Name, param.Visibility)
}

func tierText(c *imprint.Claim) string {
	switch c.Tier {
	case imprint.TierHost:
		return fmt.Sprintf("3: host %s countersigned what came over %s", c.Witness, c.Channel)
	case imprint.TierToken:
		return fmt.Sprintf("2: one-time token over %s", c.Channel)
	case imprint.TierNetwork:
		return "1: network"
	}
	if c.ApprovedBy != "" {
		return "0: approved by " + c.ApprovedBy
	}
	return "0: nothing but an operator's approval"
}

// stateText colours a state for people.
func (p *program) stateText(s imprint.State) string {
	switch {
	case s.Enrolled():
		return colour(p.out, green, string(s))
	case s.Open():
		return colour(p.out, yellow, string(s))
	}
	return colour(p.out, red, string(s))
}

func reason(r string) string {
	if r == "" {
		return ""
	}
	return ": " + r
}

func when(t time.Time) string { return t.Local().Format(time.DateTime) }

// detail writes an event's details in a fixed order.
func detail(m map[string]string) string {
	var parts []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		parts = append(parts, k+"="+m[k])
	}
	return strings.Join(parts, " ")
}

// join lists the elements of several slices.
func join(lists ...any) string {
	var parts []string
	for _, l := range lists {
		if s := strings.Trim(fmt.Sprint(l), "[]"); s != "" {
			parts = append(parts, strings.Fields(s)...)
		}
	}
	return strings.Join(parts, ", ")
}
