package dockerapi

import (
	"encoding/json"
	"fmt"
	"slices"
)

// filters reads and checks the query's filters. Docker's clients have sent two forms over the years.
func (c *call) filters(accepted ...string) (Filters, error) {
	f, err := parseFilters(c.query.Get("filters"))
	if err != nil {
		return nil, err
	}
	for key := range f {
		if !slices.Contains(accepted, key) {
			return nil, invalid(fmt.Sprintf("invalid filter '%s'", key))
		}
	}
	return f, nil
}

// parseFilters reads {"key":{"value":true}} or the older {"key":["value"]}. Docker takes a value for given
// whatever its boolean says.
func parseFilters(text string) (Filters, error) {
	if text == "" {
		return Filters{}, nil
	}
	var byKey map[string]json.RawMessage
	if err := decodeJSON([]byte(text), &byKey); err != nil {
		return nil, invalid("invalid filter: " + err.Error())
	}
	f := Filters{}
	for key, raw := range byKey {
		var set map[string]bool
		if json.Unmarshal(raw, &set) != nil {
			var values []string
			if err := json.Unmarshal(raw, &values); err != nil {
				return nil, invalid(fmt.Sprintf("invalid filter: the values of %q are neither a set nor a list", key))
			}
			set = map[string]bool{}
			for _, v := range values {
				set[v] = true
			}
		}
		f[key] = map[string]bool{}
		for v := range set {
			f[key][v] = true
		}
	}
	return f, nil
}
