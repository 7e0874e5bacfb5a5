package dockerapi

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// spec is the API's description that ships with the moby api module.
type spec struct {
	Paths       map[string]map[string]any
	Definitions map[string]any
}

func readSpec(t *testing.T) spec {
	t.Helper()
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/moby/moby/api").Output()
	if err != nil {
		t.Skipf("the moby api module is not to be found: %v", err)
	}
	text, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(dir)), "swagger.yaml"))
	if err != nil {
		t.Skip(err)
	}
	var s spec
	if err := yaml.Unmarshal(text, &s); err != nil {
		t.Fatal(err)
	}
	return s
}

// check holds a decoded JSON value against a schema: types, and required properties.
func (s spec) check(schema map[string]any, value any, at string) error {
	if ref, ok := schema["$ref"].(string); ok {
		name := strings.TrimPrefix(ref, "#/definitions/")
		def, ok := s.Definitions[name].(map[string]any)
		if !ok {
			return fmt.Errorf("%s: no definition %s", at, name)
		}
		return s.check(def, value, at)
	}
	if all, ok := schema["allOf"].([]any); ok {
		for _, part := range all {
			if err := s.check(part.(map[string]any), value, at); err != nil {
				return err
			}
		}
	}
	if value == nil {
		return nil // Go's nil maps, lists and pointers are null in docker's own answers too
	}
	kind, _ := schema["type"].(string)
	ok := true
	switch kind {
	case "object":
		var object map[string]any
		if object, ok = value.(map[string]any); ok {
			return s.checkObject(schema, object, at)
		}
	case "array":
		var items []any
		if items, ok = value.([]any); ok {
			for i, item := range items {
				if sub, has := schema["items"].(map[string]any); has {
					if err := s.check(sub, item, fmt.Sprintf("%s[%d]", at, i)); err != nil {
						return err
					}
				}
			}
		}
	case "string":
		_, ok = value.(string)
	case "integer", "number":
		_, ok = value.(float64)
	case "boolean":
		_, ok = value.(bool)
	}
	if !ok {
		return fmt.Errorf("%s: %T is not of type %s", at, value, kind)
	}
	return nil
}

func (s spec) checkObject(schema, object map[string]any, at string) error {
	required, _ := schema["required"].([]any)
	for _, name := range required {
		if _, ok := object[name.(string)]; !ok {
			return fmt.Errorf("%s: %s is required", at, name)
		}
	}
	properties, _ := schema["properties"].(map[string]any)
	for name, sub := range properties {
		if value, ok := object[name]; ok {
			if err := s.check(sub.(map[string]any), value, at+"."+name); err != nil {
				return err
			}
		}
	}
	if additional, ok := schema["additionalProperties"].(map[string]any); ok {
		for name, value := range object {
			if _, known := properties[name]; !known {
				if err := s.check(additional, value, at+"."+name); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// TestSpecPaths: every operation of the specification has a row in the table.
func TestSpecPaths(t *testing.T) {
	s := New(newFake(), Options{})
	for path, operations := range readSpec(t).Paths {
		for method := range operations {
			method = strings.ToUpper(method)
			if method == "PARAMETERS" || path == "/events" || (path == "/containers/{id}/attach/ws") {
				continue
			}
			target := strings.NewReplacer("{id}", "x", "{name}", "x").Replace(path)
			w := do(s, method, target, "", "")
			if w.Code == 405 || strings.Contains(w.Body.String(), "page not found") {
				t.Errorf("%s %s: %d %s", method, path, w.Code, w.Body)
			}
		}
	}
}

// TestSpecAnswers holds answers against the specification's schemas.
func TestSpecAnswers(t *testing.T) {
	sw := readSpec(t)
	f := newFake()
	s := New(f, Options{})
	const js = "application/json"
	do(s, "POST", "/containers/create?name=box", js, `{"Image":"alpine","Cmd":["echo","hi"]}`)
	do(s, "POST", "/containers/box/start", "", "")
	id, err := f.ExecCreate(t.Context(), "box", execRequest("echo"))
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		method, path, target, body string
		status                     int
	}{
		{"get", "/info", "", "", 200},
		{"get", "/version", "", "", 200},
		{"get", "/system/df", "/system/df?verbose=1", "", 200},
		{"get", "/containers/json", "/containers/json?all=1", "", 200},
		{"post", "/containers/create", "", `{"Image":"alpine","Cmd":["a"]}`, 201},
		{"post", "/containers/create", "", `{}`, 400},
		{"get", "/containers/{id}/json", "/containers/box/json", "", 200},
		{"get", "/containers/{id}/json", "/containers/nope/json", "", 404},
		{"get", "/containers/{id}/top", "/containers/box/top", "", 200},
		{"get", "/containers/{id}/stats", "/containers/box/stats?stream=0", "", 200},
		{"post", "/containers/{id}/wait", "/containers/box/wait", "", 200},
		{"get", "/containers/{id}/changes", "/containers/box/changes", "", 200},
		{"post", "/commit", "/commit?container=box", "", 201},
		{"post", "/containers/{id}/update", "/containers/box/update", `{"Memory":5}`, 200},
		{"post", "/containers/prune", "", "", 200},
		{"post", "/containers/{id}/exec", "/containers/box/exec", `{"Cmd":["a"]}`, 201},
		{"get", "/exec/{id}/json", "/exec/" + id + "/json", "", 200},
		{"get", "/images/json", "", "", 200},
		{"get", "/images/{name}/json", "/images/alpine/json", "", 200},
		{"get", "/images/{name}/history", "/images/alpine/history", "", 200},
		{"delete", "/images/{name}", "/images/alpine", "", 200},
		{"post", "/images/prune", "", "", 200},
		{"get", "/networks", "", "", 200},
		{"get", "/networks/{id}", "/networks/none", "", 200},
		{"post", "/networks/prune", "", "", 200},
		{"get", "/volumes", "", "", 200},
		{"post", "/volumes/prune", "", "", 200},
		{"get", "/plugins", "", "", 200},
		{"post", "/build/prune", "", "", 200},
	} {
		target, contentType := test.target, ""
		if target == "" {
			target = test.path
		}
		if test.body != "" {
			contentType = js
		}
		w := do(s, strings.ToUpper(test.method), target, contentType, test.body)
		if w.Code != test.status {
			t.Errorf("%s %s: %d %s", test.method, target, w.Code, w.Body)
			continue
		}
		operation, _ := sw.Paths[test.path][test.method].(map[string]any)
		responses, _ := operation["responses"].(map[string]any)
		response, _ := responses[fmt.Sprint(test.status)].(map[string]any)
		if response == nil { // YAML's keys may be numbers
			text, _ := yaml.Marshal(operation["responses"])
			var byNumber map[int]map[string]any
			if yaml.Unmarshal(text, &byNumber) == nil {
				response = byNumber[test.status]
			}
		}
		schema, ok := response["schema"].(map[string]any)
		if !ok {
			t.Errorf("%s %s: the specification has no schema for %d", test.method, test.path, test.status)
			continue
		}
		var value any
		if err := json.Unmarshal(w.Body.Bytes(), &value); err != nil {
			t.Errorf("%s %s: %v", test.method, target, err)
		} else if err := sw.check(schema, value, test.path); err != nil {
			t.Error(err)
		}
	}
}
