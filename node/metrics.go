package node

import (
	"net/http"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/cradlevm/cradle/pool"
)

// metrics are what the node counts, in a registry of its own.
type metrics struct {
	registry *prometheus.Registry
	failed   prometheus.Counter
	starts   *prometheus.HistogramVec // way
	phases   *prometheus.HistogramVec // phase
	machines *prometheus.HistogramVec // way, cpus, memory
}

func newMetrics() *metrics {
	histogram := func(name, help string, labels ...string) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: name, Help: help,
			// From what a phase of a pool hit takes to what a boot under load does.
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .075, .1, .25, .5, 1, 2.5, 5, 10, 30, 60},
		}, labels)
	}
	m := &metrics{
		registry: prometheus.NewRegistry(),
		failed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "cradle_starts_failed_total", Help: "Starts of containers that came to nothing.",
		}),
		starts:   histogram("cradle_start_seconds", "Starts of containers, by how they came by their virtual machine.", "way"),
		phases:   histogram("cradle_start_phase_seconds", "Phases of starts of containers.", "phase"),
		machines: histogram("cradle_machine_seconds", "How long coming by a virtual machine took.", "way", "cpus", "memory"),
	}
	m.registry.MustRegister(m.failed, m.starts, m.phases, m.machines)
	return m
}

// observe counts a start that was successful.
func (m *metrics) observe(size pool.Class, all []Phase) {
	if len(all) == 0 {
		return
	}
	way := wayOf(all)
	m.starts.WithLabelValues(way).Observe(all[len(all)-1].End.Seconds())
	for _, p := range all {
		m.phases.WithLabelValues(p.Name).Observe(p.Took.Seconds())
		if p.Name == way {
			m.machines.WithLabelValues(append([]string{way}, sizeLabels(size)...)...).Observe(p.Took.Seconds())
		}
	}
}

// sizeLabels are the values of the labels cpus and memory.
func sizeLabels(c pool.Class) []string {
	return []string{strconv.Itoa(c.CPUs), strconv.FormatInt(c.Memory, 10)}
}

// poolMetrics asks the pool at each collection.
type poolMetrics struct {
	status func() pool.Status
	used   *prometheus.Desc
	values []poolMetric
}

// poolMetric is one number of each size.
type poolMetric struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	value func(pool.ClassStatus) uint64
}

func newPoolMetrics(status func() pool.Status) *poolMetrics {
	of := func(name, help string, kind prometheus.ValueType, value func(pool.ClassStatus) uint64) poolMetric {
		return poolMetric{prometheus.NewDesc("cradle_pool_"+name, help, []string{"cpus", "memory"}, nil), kind, value}
	}
	gauge, counter := prometheus.GaugeValue, prometheus.CounterValue
	return &poolMetrics{
		status: status,
		used:   prometheus.NewDesc("cradle_pool_memory_bytes", "The host's memory that ready virtual machines and templates have.", nil, nil),
		values: []poolMetric{
			of("ready", "Virtual machines that are ready.", gauge, func(c pool.ClassStatus) uint64 { return uint64(c.Ready) }),
			of("wanted", "Virtual machines that are to be ready.", gauge, func(c pool.ClassStatus) uint64 { return uint64(c.Wanted) }),
			of("filling", "Virtual machines that are being made ready.", gauge, func(c pool.ClassStatus) uint64 { return uint64(c.Filling) }),
			of("failures", "Failures in a row of making a template or a ready one.", gauge, func(c pool.ClassStatus) uint64 { return uint64(c.Failures) }),
			of("taken_total", "Starts that found one ready.", counter, func(c pool.ClassStatus) uint64 { return c.Taken }),
			of("taken_prepared_total", "Starts that found one ready that was prepared for their image.", counter, func(c pool.ClassStatus) uint64 { return c.TakenPrepared }),
			of("prepared", "Virtual machines that are ready and prepared for an image.", gauge, func(c pool.ClassStatus) (n uint64) {
				for _, p := range c.Prepared {
					n += uint64(p.Ready)
				}
				return n
			}),
			of("restored_total", "Starts for which one was made from the template on the spot.", counter, func(c pool.ClassStatus) uint64 { return c.Restored }),
			of("missed_total", "Starts that had to boot.", counter, func(c pool.ClassStatus) uint64 { return c.Missed }),
		},
	}
}

// Describe implements prometheus.Collector.
func (m *poolMetrics) Describe(to chan<- *prometheus.Desc) {
	to <- m.used
	for _, one := range m.values {
		to <- one.desc
	}
}

// Collect implements prometheus.Collector.
func (m *poolMetrics) Collect(to chan<- prometheus.Metric) {
	status := m.status()
	to <- prometheus.MustNewConstMetric(m.used, prometheus.GaugeValue, float64(status.Used))
	for _, c := range status.Classes {
		for _, one := range m.values {
			to <- prometheus.MustNewConstMetric(one.desc, one.kind, float64(one.value(c)), sizeLabels(c.Class)...)
		}
	}
}

// Metrics serves what the node counts, in Prometheus' formats.
func (n *Node) Metrics() http.Handler {
	return promhttp.HandlerFor(n.timings.metrics.registry, promhttp.HandlerOpts{})
}
