package dockerapi

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

func FuzzFilters(f *testing.F) {
	for _, seed := range []string{"", "{}", `{"a":["b"]}`, `{"a":{"b":true}}`, `{"a":{"b":[]}}`, "[[[["} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		filters, err := parseFilters(text)
		if err != nil {
			if !errdefs.IsInvalidArgument(err) {
				t.Fatalf("%q: %v", text, err)
			}
			return
		}
		again, err := json.Marshal(filters)
		if err != nil {
			t.Fatal(err)
		}
		if same, err := parseFilters(string(again)); err != nil || !reflect.DeepEqual(filters, same) {
			t.Fatalf("%q: %v became %v, %v", text, filters, same, err)
		}
	})
}

// FuzzRequest sends anything to everything: no panic, and every failure is a message.
func FuzzRequest(f *testing.F) {
	for _, r := range (&server{b: newFake()}).routes() {
		path := strings.NewReplacer("{id}", "x", "{name...}", "a/b", "{checkpoint}", "c").Replace(r.path) + r.suffix
		f.Add(r.method, "/v1.44"+path, "filters={}&platform=linux/arm64&h=1&w=2&t=3&since=4.5&stdout=1&fromImage=a&tag=b", `{"Image":"alpine","Cmd":["x"]}`)
	}
	f.Fuzz(func(t *testing.T, method, path, query, body string) {
		r, err := http.NewRequest(method, "http://d/", strings.NewReader(body))
		if err != nil || strings.HasSuffix(path, "/events") {
			t.Skip()
		}
		r.URL.Path, r.URL.RawQuery = path, query
		r.Header.Set("Content-Type", "application/json")
		w := httptest.NewRecorder()
		New(newFake(), Options{}).ServeHTTP(w, r)
		if strings.Contains(w.Body.String(), "internal error") {
			t.Fatalf("%s %q?%q: %s", method, path, query, w.Body)
		}
		if w.Code >= 400 && w.Header().Get("Content-Type") != "application/json" {
			t.Fatalf("%s %q?%q: %d %s", method, path, query, w.Code, w.Body)
		}
	})
}
