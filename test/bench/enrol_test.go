//go:build bench

// Package bench measures imprint beside its peers, in one run: make bench. Server
// and load are processes of their own on both sides, on the machine's loopback;
// rounds alternate, and medians are compared.
package bench

import (
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"runtime"
	"testing"
	"text/tabwriter"
)

var (
	clients    = flag.Int("clients", 32, "connections at a time")
	rounds     = flag.Int("rounds", 5, "rounds of each side")
	perRound   = flag.Int("requests", 8000, "enrolments in a round")
	cpuProfile = flag.String("server-profile", "", "write the CPU profile of imprint's server in the last round to this file")
)

// warmUp is how many enrolments each side does in round 0, which does not count.
const warmUp = 2000

// BenchmarkEnrolments compares full enrolments over EST, from token and request
// to the durable certificate, with step-ca's signing of the same requests by
// one-time tokens. One iteration is the whole comparison.
func BenchmarkEnrolments(b *testing.B) {
	for b.Loop() {
		ours, peer := startImprint(b), startStepCA(b)
		runs := map[string][]figures{}
		for round := range *rounds + 1 {
			n := *perRound
			if round == 0 {
				n = warmUp
			}
			for _, side := range []struct {
				name    string
				measure func(b *testing.B, round, n int) figures
			}{{"imprint", ours.measure}, {"step-ca", peer.measure}} {
				f := side.measure(b, round, n)
				if round == 0 {
					continue
				}
				fmt.Printf("round %d  %s  %s\n", round, side.name, f)
				runs[side.name] = append(runs[side.name], f)
			}
		}
		compare(b, os.Stdout, runs, "imprint", "step-ca")
		bound(b, os.Stdout)
	}
}

func (s *imprintServer) measure(b *testing.B, round, n int) figures {
	b.Helper()
	requests := s.requests(b, newCSRs(b, fmt.Sprintf("a%d", round), n))
	if *cpuProfile != "" && round == *rounds {
		s.profile(b, *cpuProfile)
		defer s.profile(b, "")
	}
	warm, err := prepare("GET", s.url+"/.well-known/est/cacerts", nil, nil)
	if err != nil {
		b.Fatal(err)
	}
	return load(b, *clients, s.process, s.roots, s.address, warm, http.StatusOK, requests)
}

func (s *stepCA) measure(b *testing.B, round, n int) figures {
	b.Helper()
	requests := s.requests(b, newCSRs(b, fmt.Sprintf("b%d", round), n))
	warm, err := prepare("GET", s.url+"/health", nil, nil)
	if err != nil {
		b.Fatal(err)
	}
	return load(b, *clients, s.process, s.roots, s.address, warm, http.StatusCreated, requests)
}

// compare prints the medians and the ratio of ours to the peer's as a table.
func compare(b *testing.B, w io.Writer, runs map[string][]figures, ours, peer string) {
	b.Helper()
	fmt.Fprintf(w, "\nenrolments over TLS, %d clients, median of %d rounds of %d, %d CPUs, %s\n\n",
		*clients, *rounds, *perRound, runtime.NumCPU(), runtime.Version())
	table := tabwriter.NewWriter(w, 0, 0, 3, ' ', tabwriter.AlignRight)
	fmt.Fprintln(table, "\trate/s\tp50 ms\tp99 ms\tserver CPU ms\tclients' CPU ms\tslowest round/s\tfastest round/s\t")
	for _, side := range []string{ours, peer} {
		m := median(runs[side])
		low, high := spread(runs[side])
		fmt.Fprintf(table, "%s\t%.0f\t%.2f\t%.2f\t%.2f\t%.2f\t%.0f\t%.0f\t\n", side, m.perSecond, ms(m.p50), ms(m.p99), ms(m.cpu), ms(m.load), low, high)
		b.ReportMetric(m.perSecond, side+"/s")
	}
	table.Flush()
	ratio := median(runs[ours]).perSecond / median(runs[peer]).perSecond
	fmt.Fprintf(w, "\n%s / %s = %.2f\n\n", ours, peer, ratio)
	b.ReportMetric(ratio, "ratio")
}
