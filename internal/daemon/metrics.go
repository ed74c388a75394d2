package daemon

import (
	"context"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"imprint"
	"imprint/internal/enrol"
	"imprint/internal/helpervm"
	"imprint/internal/host"
)

// storePatience is how long a scrape waits for the store to answer.
const storePatience = time.Second

// metrics count what the roles do, where the daemon joins them. Every label has
// few values: kinds of errors and channels, and names from the configuration.
type metrics struct {
	registry     *prometheus.Registry
	enrolments   *prometheus.CounterVec
	reports      *prometheus.CounterVec
	certificates *prometheus.CounterVec
	requests     *prometheus.CounterVec
	duration     prometheus.Histogram
}

func newMetrics() *metrics {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	m := &metrics{
		registry:     prometheus.NewRegistry(),
		enrolments:   counter("imprint_enrolments_total", "Certificate requests by channel and outcome; repeats count.", "channel", "outcome"),
		reports:      counter("imprint_reports_total", "What machines reported by kind, channel and outcome; repeats count.", "kind", "channel", "outcome"),
		certificates: counter("imprint_certificates_signed_total", "Certificates signed by tenant and trust tier.", "tenant", "tier"),
		requests:     counter("imprint_checkin_requests_total", "Requests to the check-in endpoint by route and status.", "route", "status"),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "imprint_checkin_request_seconds", Help: "Duration of requests to the check-in endpoint.",
			Buckets: []float64{.001, .005, .02, .1, .5, 2, 10},
		}),
	}
	m.registry.MustRegister(m.enrolments, m.reports, m.certificates, m.requests, m.duration)
	return m
}

// observe adds what is looked up when somebody asks for the metrics.
func (m *metrics) observe(d *Daemon) {
	gauge := func(name, help string, labels prometheus.Labels, value func() float64) {
		m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help, ConstLabels: labels}, value))
	}
	gauge("imprint_store_up", "Whether the store answers.", nil, func() float64 {
		ctx, cancel := context.WithTimeout(context.Background(), storePatience)
		defer cancel()
		if d.ready(ctx) != nil {
			return 0
		}
		return 1
	})
	if d.hosts.api != nil {
		gauge("imprint_hosts_connected", "Hypervisors that are connected.", nil, func() float64 { return float64(d.hosts.api.Connected()) })
	}
	helpers := func(value func(helpervm.VM) float64) func() float64 {
		return func() (sum float64) {
			running, _ := helpervm.Running(helpervm.RunDir())
			for _, vm := range running {
				sum += value(vm)
			}
			return sum
		}
	}
	gauge("imprint_helper_vms", "Helper VMs that run on this host.", nil, helpers(func(helpervm.VM) float64 { return 1 }))
	gauge("imprint_helper_vm_memory_bytes", "Memory of the helper VMs that run on this host.", nil, helpers(func(vm helpervm.VM) float64 { return float64(vm.MemoryMiB) * (1 << 20) }))
	for _, reason := range host.DropReasons() {
		m.registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "imprint_nic_dropped_packets_total", Help: "Packets dropped at the interfaces of this server's guests, by reason; up to a minute late.",
			ConstLabels: prometheus.Labels{"reason": reason},
		}, func() float64 { return float64(d.host.Dropped()[reason]) }))
	}
	for _, t := range d.settings.Tenants {
		gauge("imprint_issuing_ca_end_seconds", "When a tenant's issuing CA ends, in seconds since 1970.",
			prometheus.Labels{"tenant": string(t.Name)}, func() float64 {
				a, err := d.authorities.tenant(t.Name)
				if err != nil {
					return 0
				}
				return float64(a.Expires().Unix())
			})
	}
}

// checkIn notes one request to the check-in endpoint.
func (m *metrics) checkIn(route string, status int, took time.Duration) {
	m.requests.WithLabelValues(route, strconv.Itoa(status)).Inc()
	m.duration.Observe(took.Seconds())
}

// outcome is "ok" or the kind of err.
func outcome(err error) string {
	if err == nil {
		return "ok"
	}
	return imprint.KindOf(err).String()
}

// measuredEngine counts what machines ask of the engine.
type measuredEngine struct {
	*enrol.Engine
	metrics *metrics
}

func (d *Daemon) measuredEngine() measuredEngine { return measuredEngine{d.engine, d.metrics} }

func (e measuredEngine) Enrol(ctx context.Context, s imprint.Submission) (*imprint.Instance, error) {
	i, err := e.Engine.Enrol(ctx, s)
	e.metrics.enrolments.WithLabelValues(string(s.Channel), outcome(err)).Inc()
	return i, err
}

func (e measuredEngine) Report(ctx context.Context, r imprint.Report) error {
	err := e.Engine.Report(ctx, r)
	e.metrics.reports.WithLabelValues(string(r.Kind), string(r.Channel), outcome(err)).Inc()
	return err
}

// measuredIssuer counts what is signed.
type measuredIssuer struct {
	enrol.Issuer
	metrics *metrics
}

func (i measuredIssuer) Issue(ctx context.Context, g imprint.Grant) (*imprint.Certificate, *imprint.LogEntry, error) {
	c, entry, err := i.Issuer.Issue(ctx, g)
	if err == nil {
		i.metrics.certificates.WithLabelValues(string(g.Tenant), strconv.Itoa(int(g.Tier))).Inc()
	}
	return c, entry, err
}
