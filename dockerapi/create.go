package dockerapi

import (
	"encoding"
	"encoding/json"
	"maps"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
)

func (s *server) containerCreate(c *call) error {
	platform, err := c.platform()
	if err != nil {
		return err
	}
	r, err := c.createRequest()
	if err != nil {
		return err
	}
	created, err := s.b.ContainerCreate(c.r.Context(), c.query.Get("name"), platform, r)
	if err != nil {
		return err
	}
	created.Warnings = orList(created.Warnings)
	return c.json(http.StatusCreated, created)
}

// createRequest reads the body. A field that the newest API does not know was dropped from it (or never was in
// it): the Backend cannot see it, so that it is refused here, by name, when the client set it to something.
func (c *call) createRequest() (container.CreateRequest, error) {
	var r container.CreateRequest
	text, err := c.body(&r)
	if err != nil {
		return r, err
	}
	if r.Config == nil {
		return r, invalid("config cannot be empty in order to create a container")
	}
	if field := unknownField(text, reflect.TypeFor[container.CreateRequest]()); field != "" {
		return r, unsupported("The field " + field + " of a container")
	}
	if r.HostConfig == nil {
		r.HostConfig = &container.HostConfig{}
	}
	if r.NetworkingConfig == nil {
		r.NetworkingConfig = &network.NetworkingConfig{}
	}
	return r, nil
}

// unknownField finds a field of a JSON document that type t does not have and that says something: null, zero and
// empty values are what clients send for what they do not use.
func unknownField(text json.RawMessage, t reflect.Type) string {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	p := reflect.PointerTo(t)
	if p.Implements(reflect.TypeFor[json.Unmarshaler]()) || p.Implements(reflect.TypeFor[encoding.TextUnmarshaler]()) {
		return ""
	}
	switch t.Kind() {
	case reflect.Struct:
		var doc map[string]json.RawMessage
		if json.Unmarshal(text, &doc) != nil {
			return ""
		}
		known := jsonFields(t)
		for _, key := range slices.Sorted(maps.Keys(doc)) {
			field, ok := known[strings.ToLower(key)]
			if !ok && !isEmptyJSON(doc[key]) {
				return key
			}
			if ok {
				if inner := unknownField(doc[key], field); inner != "" {
					return key + "." + inner
				}
			}
		}
	case reflect.Map:
		var doc map[string]json.RawMessage
		if json.Unmarshal(text, &doc) != nil {
			return ""
		}
		for _, key := range slices.Sorted(maps.Keys(doc)) {
			if inner := unknownField(doc[key], t.Elem()); inner != "" {
				return key + "." + inner
			}
		}
	case reflect.Slice:
		var doc []json.RawMessage
		if t.Elem().Kind() == reflect.Uint8 || json.Unmarshal(text, &doc) != nil {
			return ""
		}
		for i, item := range doc {
			if inner := unknownField(item, t.Elem()); inner != "" {
				return strconv.Itoa(i) + "." + inner
			}
		}
	}
	return ""
}

// jsonFields are the fields that encoding/json fills, by their name in lower case: it takes any case.
func jsonFields(t reflect.Type) map[string]reflect.Type {
	fields := map[string]reflect.Type{}
	for _, f := range reflect.VisibleFields(t) {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if !f.IsExported() || name == "-" || (f.Anonymous && name == "") {
			continue // an embedded struct's fields are in the list too
		}
		if name == "" {
			name = f.Name
		}
		fields[strings.ToLower(name)] = f.Type
	}
	return fields
}

// isEmptyJSON tells what clients send for what they do not use. It decodes once: a client chooses how deep to nest.
func isEmptyJSON(text json.RawMessage) bool {
	var v any
	return json.Unmarshal(text, &v) == nil && isEmpty(v)
}

func isEmpty(v any) bool {
	switch v := v.(type) {
	case []any:
		return !slices.ContainsFunc(v, func(item any) bool { return !isEmpty(item) })
	case map[string]any:
		return len(v) == 0
	}
	return v == nil || v == false || v == 0.0 || v == ""
}
