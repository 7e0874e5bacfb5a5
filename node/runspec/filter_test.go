package runspec

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/moby/moby/api/types/container"
)

// What is remembered is what would be compiled, for each set of inputs; and so much is remembered and no more.
func TestFilters(t *testing.T) {
	remembering, not := Settings{Filters: NewFilters()}, Settings{}
	config := &container.Config{Cmd: []string{"true"}}
	seen := map[string]string{}
	for name, host := range map[string]*container.HostConfig{
		"default":      {},
		"default, too": {},
		"no caps":      {CapDrop: []string{"ALL"}},
		"more caps":    {CapAdd: []string{"SYS_ADMIN"}},
		"privileged":   {Privileged: true},
		"unconfined":   {SecurityOpt: []string{"seccomp=unconfined"}},
		"builtin":      {Privileged: true, SecurityOpt: []string{"seccomp=builtin"}},
		"own":          {SecurityOpt: []string{`seccomp={"defaultAction":"SCMP_ACT_ALLOW"}`}},
		"own, other":   {SecurityOpt: []string{`seccomp={"defaultAction":"SCMP_ACT_ERRNO"}`}},
	} {
		for round := range 2 {
			c, _, err := Prepare("id", config, host, remembering)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			got, err := Create(c, remembering)
			if err != nil {
				t.Fatal(err)
			}
			want, err := Create(c, not)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got.Seccomp, want.Seccomp) {
				t.Errorf("%s, round %d: another filter", name, round)
			}
			seen[name] = string(got.Seccomp)
		}
	}
	if seen["default"] != seen["default, too"] || seen["default"] == seen["more caps"] || seen["privileged"] != "" {
		t.Error("the filters are not told apart")
	}
	for i := range 2 * maxFilters {
		host := &container.HostConfig{SecurityOpt: []string{fmt.Sprintf(`seccomp={"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":%d}`, i+1)}}
		if _, _, err := Prepare("id", config, host, remembering); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(remembering.Filters.made); n > maxFilters {
		t.Errorf("%d are remembered", n)
	}
	bad := &container.HostConfig{SecurityOpt: []string{`seccomp={"defaultAction":"nonsense"}`}}
	for range 2 {
		if _, _, err := Prepare("id", config, bad, remembering); err == nil {
			t.Error("a bad profile passes")
		}
	}
}

func BenchmarkCreate(b *testing.B) {
	for name, s := range map[string]Settings{"remembering": {Filters: NewFilters()}, "compiling": {}} {
		b.Run(name, func(b *testing.B) {
			c, _, err := Prepare("id", &container.Config{Cmd: []string{"true"}}, nil, s)
			if err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				if _, err := Create(c, s); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
