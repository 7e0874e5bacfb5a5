package node

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

func TestPrograms(t *testing.T) {
	path := "A=b PATH=/usr/bin:/bin::local PATHS=/x"
	for _, test := range []struct {
		args string
		want []string
	}{
		{"true x", []string{"/usr/bin/true", "/bin/true", "/true", "/local/true"}},
		{"/bin/sh -c y", []string{"/bin/sh"}},
		{"./run", []string{"./run"}},
		{"", nil},
	} {
		if got := programs(strings.Fields(test.args), strings.Fields(path)); !slices.Equal(got, test.want) {
			t.Errorf("%q: %q, want %q", test.args, got, test.want)
		}
	}
	var many []string
	for i := range 100 {
		many = append(many, fmt.Sprintf("/%d", i))
	}
	if got := programs([]string{"a"}, []string{"PATH=" + strings.Join(many, ":")}); len(got) != maxPrograms {
		t.Errorf("%d places are looked at", len(got))
	}
}
