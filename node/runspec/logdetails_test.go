package runspec

import (
	"testing"

	"github.com/moby/moby/api/types/container"
)

func TestLogDetails(t *testing.T) {
	c := &container.Config{
		Image: "busybox:1", Entrypoint: []string{"/bin/sh", "-c"}, Cmd: []string{"true"},
		Env:    []string{"A=1", "B=two words", "EMPTY=", "NONE"},
		Labels: map[string]string{"tier": "web", "app/x": "a,b=c", "A": "label"},
	}
	names := LogNames{ID: "0123456789abcdef", Name: "box", ImageID: "sha256:0123456789", Hostname: "host"}
	for _, row := range []struct {
		options map[string]string
		want    string
	}{
		{nil, ""},
		{map[string]string{"max-size": "1m"}, ""},
		{map[string]string{"labels": "tier"}, "tier=web"},
		{map[string]string{"labels": "missing, tier,,"}, ""},
		{map[string]string{"labels": "tier,app/x"}, "app%2Fx=a%2Cb%3Dc,tier=web"},
		{map[string]string{"env": "B,EMPTY,NONE"}, "B=two+words,EMPTY="},
		{map[string]string{"labels": "A", "env": "A"}, "A=1"}, // the environment comes last
		{map[string]string{"labels-regex": "^(tier|A)$"}, "A=label,tier=web"},
		{map[string]string{"env-regex": "."}, "A=1,B=two+words,EMPTY="},
		{map[string]string{"tag": "plain"}, "tag=plain"},
		{map[string]string{"tag": "{{.ID}}/{{.FullID}}/{{.Name}}/{{ .ImageID }}"}, "tag=0123456789ab%2F0123456789abcdef%2Fbox%2Fsha256%3A01234"},
		{map[string]string{"tag": "{{.ImageName}} {{.ImageFullID}} {{.DaemonName}} {{.Hostname}} {{.Command}}"},
			"tag=busybox%3A1+sha256%3A0123456789+docker+host+%2Fbin%2Fsh+-c+true"},
		{map[string]string{"tag": "t", "labels": "tier", "env": "A"}, "A=1,tag=t,tier=web"},
	} {
		got, err := LogDetails(c, &container.HostConfig{LogConfig: container.LogConfig{Config: row.options}}, names)
		if got != row.want || err != nil {
			t.Errorf("%v: %q %v, want %q", row.options, got, err, row.want)
		}
	}
	for _, driver := range []string{"local", "none"} {
		hc := &container.HostConfig{LogConfig: container.LogConfig{Type: driver, Config: map[string]string{"labels": "tier"}}}
		if got, err := LogDetails(c, hc, names); got != "" || err != nil {
			t.Errorf("%s: %q %v", driver, got, err)
		}
	}
	if _, err := Log(&container.HostConfig{LogConfig: container.LogConfig{Type: "none", Config: map[string]string{"labels": "a"}}}); err != nil {
		t.Error(err)
	}
}

// What could run or grow without end is refused, and what is wrong is told at create.
func TestLogDetailsRefused(t *testing.T) {
	for _, options := range []map[string]string{
		{"labels-regex": "("}, {"env-regex": "*"}, {"tag": "{{"}, {"tag": "{{.Nonsense}}"}, {"tag": "{{.Name.Name}}"},
		{"tag": `{{printf "%1000000000d" 1}}`}, {"tag": "{{range .ContainerEnv}}x{{end}}"}, {"tag": `{{define "x"}}{{template "x"}}{{end}}{{template "x"}}`},
		{"tag": "{{$x := .ID}}{{$x}}"}, {"tag": "{{.ID | .Name}}"}, {"tag": "{{if .ID}}x{{end}}"}, {"tag": `{{"text"}}`},
	} {
		hc := &container.HostConfig{LogConfig: container.LogConfig{Type: "json-file", Config: options}}
		if got, err := LogDetails(&container.Config{}, hc, LogNames{}); err == nil {
			t.Errorf("%v: %q", options, got)
		}
		if _, _, err := Prepare("0123456789ab", &container.Config{Cmd: []string{"true"}}, hc, Settings{MaxMemory: 1 << 20}); err == nil {
			t.Errorf("%v: accepted", options)
		}
	}
}
