package node

import (
	"fmt"
	"io"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/cradlevm/cradle/pool"
)

func TestTimings(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		id := h.run("a", "echo hi")
		h.run("b", "true")
		starts := h.Starts(id)
		if len(starts) != 1 || len(h.Starts("")) != 2 || len(h.Starts("another")) != 0 {
			t.Fatalf("%+v of %+v", starts, h.Starts(""))
		}
		var names []string
		last := time.Duration(0)
		for _, p := range starts[0].Phases {
			names = append(names, p.Name)
			if p.End-p.Took != last {
				t.Errorf("%+v does not begin where the phase before it ended", p)
			}
			last = p.End
		}
		if s := strings.Join(names, " "); !strings.HasPrefix(s, "queue request disks boot create exec record") {
			t.Errorf("phases %q", s)
		}
		if s := starts[0]; s.Way != wayBoot || s.Size.Memory != 512<<20 || s.Size.CPUs != 1 {
			t.Errorf("%+v", s)
		}
		h.create("c", "no-such-program")
		if err := h.ContainerStart(t.Context(), "c"); err == nil {
			t.Error("it starts")
		}
		answer := httptest.NewRecorder()
		h.Metrics().ServeHTTP(answer, httptest.NewRequest("GET", "/", nil))
		text, _ := io.ReadAll(answer.Body)
		for _, want := range []string{
			`cradle_start_seconds_count{way="boot"} 2`, `cradle_start_phase_seconds_count{phase="exec"} 2`,
			`cradle_machine_seconds_count{cpus="1",memory="536870912",way="boot"} 2`, "cradle_starts_failed_total 1",
			"cradle_pool_memory_bytes 0",
		} {
			if !strings.Contains(string(text), want+"\n") {
				t.Errorf("the metrics do not say %s", want)
			}
		}
		wantHistograms(t, string(text), "cradle_start_seconds", "cradle_start_phase_seconds", "cradle_machine_seconds")
	})
}

// wantHistograms has Prometheus' own parser read the metrics, and looks at what it takes for histograms: buckets that go up and end
// with all there is.
func wantHistograms(t *testing.T, text string, names ...string) {
	t.Helper()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		all := families[name].GetMetric()
		if len(all) == 0 {
			t.Errorf("no %s", name)
		}
		for _, m := range all {
			h, last := m.GetHistogram(), uint64(0)
			for _, b := range h.GetBucket() {
				if b.GetCumulativeCount() < last {
					t.Errorf("%s: %s", name, h)
				}
				last = b.GetCumulativeCount()
			}
			if h.GetSampleCount() == 0 || last != h.GetSampleCount() || h.GetSampleSum() < 0 {
				t.Errorf("%s: %s", name, h)
			}
		}
	}
}

func TestOnlyTheLastStartsAreKept(t *testing.T) {
	all := newTimings()
	for i := range keptStarts + 10 {
		all.add(fmt.Sprint(i), pool.Class{}, newPhases())
	}
	list := all.list("")
	if len(list) != keptStarts || list[0].Container != "10" || list[keptStarts-1].Container != fmt.Sprint(keptStarts+9) {
		t.Errorf("%d are kept, from %s on", len(list), list[0].Container)
	}
}
