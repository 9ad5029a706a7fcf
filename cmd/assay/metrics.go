package main

import (
	"context"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"google.golang.org/grpc/codes"

	"github.com/assay-dev/assay/registry/oci"
)

// metrics are what /metrics shows. Labels have few values: routes and not
// paths, and never a repository or a digest.
type metrics struct {
	registry *prometheus.Registry

	requests  *prometheus.CounterVec
	took      *prometheus.HistogramVec
	received  prometheus.Counter
	sent      prometheus.Counter
	calls     *prometheus.CounterVec
	callsTook *prometheus.HistogramVec
	stored    *stored
}

func newMetrics(s *stored) *metrics {
	durations := []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 10, 60, 600, 3600}
	m := &metrics{
		registry: prometheus.NewRegistry(),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "assay_oci_requests_total", Help: "OCI requests that were answered, by route, method and status.",
		}, []string{"route", "method", "code"}),
		took: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "assay_oci_request_duration_seconds", Help: "How long OCI requests took, with their bodies.", Buckets: durations,
		}, []string{"route", "method"}),
		received: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "assay_oci_received_bytes_total", Help: "Bytes of OCI request bodies.",
		}),
		sent: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "assay_oci_sent_bytes_total", Help: "Bytes of OCI response bodies.",
		}),
		calls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "assay_rpc_calls_total", Help: "Calls by gRPC and REST, by method and code.",
		}, []string{"method", "code"}),
		callsTook: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "assay_rpc_call_duration_seconds", Help: "How long calls by gRPC and REST took.", Buckets: durations,
		}, []string{"method"}),
		stored: s,
	}
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "assay_build_info", Help: "Always 1; the label tells the version.", ConstLabels: prometheus.Labels{"version": buildVersion()},
	})
	build.Set(1)
	m.registry.MustRegister(m.requests, m.took, m.received, m.sent, m.calls, m.callsTook, build, m,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// methods are the ones the specification knows; a client may send others.
var methods = map[string]bool{"GET": true, "HEAD": true, "POST": true, "PUT": true, "PATCH": true, "DELETE": true}

func (m *metrics) observeOCI(o oci.Observation) {
	if o.Route == "" {
		o.Route = "none"
	}
	if !methods[o.Method] {
		o.Method = "other"
	}
	m.requests.WithLabelValues(o.Route, o.Method, strconv.Itoa(o.Status)).Inc()
	m.took.WithLabelValues(o.Route, o.Method).Observe(o.Took.Seconds())
	m.received.Add(float64(o.Received))
	m.sent.Add(float64(o.Sent))
}

func (m *metrics) observeRPC(method string, code codes.Code, took time.Duration) {
	m.calls.WithLabelValues(method, code.String()).Inc()
	m.callsTook.WithLabelValues(method).Observe(took.Seconds())
}

var (
	readyDesc      = prometheus.NewDesc("assay_ready", "1 if the registry can read and write, else 0; /readyz says why.", nil, nil)
	changesDesc    = prometheus.NewDesc("assay_changes_total", "Changes that were submitted, by outcome.", []string{"outcome"}, nil)
	commitsDesc    = prometheus.NewDesc("assay_commits_total", "Commits, each of which makes one or more changes durable.", nil, nil)
	commitTimeDesc = prometheus.NewDesc("assay_commit_seconds_total", "Time spent in commits.", nil, nil)
	uploadsDesc    = prometheus.NewDesc("assay_uploads_running", "Upload sessions in memory.", nil, nil)
	leavesDesc     = prometheus.NewDesc("assay_log_leaves", "Leaves of the tamper-evident log.", nil, nil)
	diskDesc       = prometheus.NewDesc("assay_disk_bytes", "Disk under the data folder: free, promised to running uploads, kept in reserve.", []string{"state"}, nil)
)

// Describe implements prometheus.Collector.
func (m *metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{readyDesc, changesDesc, commitsDesc, commitTimeDesc, uploadsDesc, leavesDesc, diskDesc} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (m *metrics) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	counter := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, v, labels...)
	}
	ready := 0.0
	if m.stored.registry.Ready(ctx) == nil {
		ready = 1
	}
	gauge(readyDesc, ready)
	if s, err := m.stored.registry.Stats(ctx); err == nil {
		counter(changesDesc, float64(s.Changes-s.Refused), "made")
		counter(changesDesc, float64(s.Refused), "refused")
		counter(commitsDesc, float64(s.Commits))
		counter(commitTimeDesc, s.CommitTime.Seconds())
		gauge(uploadsDesc, float64(s.Uploads))
		gauge(leavesDesc, float64(s.Leaves))
	}
	if free, promised, reserve, err := m.stored.space.Usage(); err == nil {
		gauge(diskDesc, float64(free), "free")
		gauge(diskDesc, float64(promised), "promised")
		gauge(diskDesc, float64(reserve), "reserve")
	}
}
