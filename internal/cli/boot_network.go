package cli

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"
)

const (
	// gateway is this host's loopback interface on QEMU's own network.
	gateway = "10.0.2.2"
	// reachTime is how long a look at the check-in endpoint may take.
	reachTime = 3 * time.Second
)

// warnUnreachable says so if a machine on QEMU's own network will not reach any of
// the check-in URLs. It goes on: what the machine has set up itself is not known.
func (p *program) warnUnreachable(ctx context.Context, ref string, urls []string) {
	var why []string
	remedy := ""
	for _, raw := range urls {
		problem := unreachable(ctx, raw)
		if problem == "" {
			return
		}
		why = append(why, raw+" "+problem)
		if u, err := url.Parse(raw); err == nil && remedy == "" {
			remedy = "https://" + net.JoinHostPort(gateway, portOf(u))
		}
	}
	if len(why) == 0 {
		return // it has nowhere to check in, and nothing to do it with
	}
	const listen = "have the server listen where this host's loopback interface leads to, with checkIn.listen"
	hint := fmt.Sprintf("add %s to checkIn.urls in the server's configuration: that is this host for a machine on QEMU's network", remedy)
	if slices.Contains(urls, remedy) {
		hint = listen
	} else if u, err := url.Parse(remedy); err == nil && !answers(ctx, net.JoinHostPort("127.0.0.1", u.Port())) {
		hint = listen + ", and " + hint
	}
	fmt.Fprintf(p.err, "warning: %s will not be able to check in: %s\n  hint: %s\n", ref, strings.Join(why, "; "), hint)
}

// unreachable returns why a machine on QEMU's own network cannot reach a URL, or "".
// That network leads where this host's routes lead, and to this host's loopback
// interface at [gateway]; names are what this host's name servers know.
func unreachable(ctx context.Context, raw string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return "is no URL"
	}
	ctx, cancel := context.WithTimeout(ctx, reachTime)
	defer cancel()
	host := u.Hostname()
	addrs := []netip.Addr{}
	if addr, err := netip.ParseAddr(host); err == nil {
		addrs = append(addrs, addr)
	} else if addrs, err = net.DefaultResolver.LookupNetIP(ctx, "ip", host); err != nil {
		return "has a name that no name server knows"
	}
	addrs = slices.DeleteFunc(addrs, func(a netip.Addr) bool { return a.Unmap().IsLoopback() })
	switch {
	case len(addrs) == 0:
		return "leads a machine to itself"
	case inHostsFile(host):
		return "has a name from /etc/hosts, which the machine does not read"
	}
	for _, addr := range addrs {
		to := addr.String()
		if to == gateway {
			to = "127.0.0.1"
		}
		if answers(ctx, net.JoinHostPort(to, portOf(u))) {
			return ""
		}
	}
	return "does not answer"
}

func portOf(u *url.URL) string {
	if port := u.Port(); port != "" {
		return port
	}
	return "443"
}

func answers(ctx context.Context, address string) bool {
	conn, err := (&net.Dialer{Timeout: reachTime}).DialContext(ctx, "tcp", address)
	if err == nil {
		conn.Close()
	}
	return err == nil
}

// inHostsFile reports whether /etc/hosts has the name. The resolver does not tell
// where it found it.
func inHostsFile(name string) bool {
	f, err := os.Open("/etc/hosts")
	if err != nil {
		return false
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		line, _, _ := strings.Cut(lines.Text(), "#")
		if fields := strings.Fields(line); len(fields) > 1 && slices.ContainsFunc(fields[1:], func(f string) bool { return strings.EqualFold(f, name) }) {
			return true
		}
	}
	return false
}
