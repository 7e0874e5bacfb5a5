package main

import (
	"strings"
	"testing"
)

func TestListWords(t *testing.T) {
	o, err := parseList(strings.Split("all|quiet|no-trunc|filter=Name=a|filter=name=b|all", "|"))
	if err != nil || !o.all || !o.quiet || !o.noTrunc || len(o.filters.Value()["name"]) != 2 {
		t.Errorf("%+v, %v", o, err)
	}
	if o, err := parseList([]string{""}); err != nil || o.all || o.quiet || o.noTrunc {
		t.Errorf("%+v, %v", o, err)
	}
	for _, words := range []string{"size", "filter", "filter=a", "all|format=x"} {
		if o, err := parseList(strings.Split(words, "|")); err == nil {
			t.Errorf("%q: %+v", words, o)
		}
	}
}
