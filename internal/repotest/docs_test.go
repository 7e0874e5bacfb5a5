package repotest

import (
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// documents are the texts whose commands and links are checked.
func documents(t *testing.T) map[string]string {
	t.Helper()
	texts := map[string]string{}
	for _, pattern := range []string{"*.md", "docs/*.md"} {
		paths, err := filepath.Glob(filepath.Join(root(t), pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range paths {
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			rel, _ := filepath.Rel(root(t), path)
			texts[rel] = string(b)
		}
	}
	return texts
}

// TestDocumentedTargets: every `make x` the documents speak of exists.
func TestDocumentedTargets(t *testing.T) {
	b, err := os.ReadFile(filepath.Join(root(t), "Makefile"))
	if err != nil {
		t.Fatal(err)
	}
	target := regexp.MustCompile("(?m)(?:^    |`|\\$ )make ([a-z-]+)")
	for name, text := range documents(t) {
		for _, m := range target.FindAllStringSubmatch(text, -1) {
			if !regexp.MustCompile(`(?m)^` + m[1] + `:`).Match(b) {
				t.Errorf("%s: the Makefile has no target %s", name, m[1])
			}
		}
	}
}

// TestDocumentedFiles: links lead somewhere, and so do paths of this repository in code font.
func TestDocumentedFiles(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)#:]+)(?:#[^)]*)?\)`)
	quoted := regexp.MustCompile("`((?:docs|hack|cmd|internal|test|systemd|guestos|\\.ci)/[A-Za-z0-9_./-]+)`")
	for name, text := range documents(t) {
		var paths []string
		for _, m := range link.FindAllStringSubmatch(text, -1) {
			paths = append(paths, filepath.Join(filepath.Dir(name), m[1]))
		}
		for _, m := range quoted.FindAllStringSubmatch(text, -1) {
			paths = append(paths, m[1])
		}
		for _, path := range paths {
			if _, err := os.Stat(filepath.Join(root(t), path)); err != nil && !strings.HasPrefix(path, "cmd/containerd-shim") {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
}

// TestSpecificationHasEvidence: every promise in SPECIFICATION.md names a test or benchmark, and it exists.
func TestSpecificationHasEvidence(t *testing.T) {
	b, err := os.ReadFile(filepath.Join(root(t), "SPECIFICATION.md"))
	if errors.Is(err, os.ErrNotExist) {
		t.Skip("no SPECIFICATION.md")
	}
	if err != nil {
		t.Fatal(err)
	}
	tests := testNames(t)
	name := regexp.MustCompile("`((?:Test|Benchmark|Fuzz)[A-Za-z0-9_]+)`")
	for i, line := range strings.Split(string(b), "\n") {
		if !strings.HasPrefix(line, "| ") || strings.HasPrefix(line, "| promise") || strings.HasPrefix(line, "| ---") {
			continue
		}
		found := name.FindAllStringSubmatch(line, -1)
		if len(found) == 0 && !strings.Contains(line, "`hack/bench") {
			t.Errorf("SPECIFICATION.md:%d: a promise without a test or benchmark behind it", i+1)
		}
		for _, m := range found {
			if !tests[m[1]] {
				t.Errorf("SPECIFICATION.md:%d: there is no %s", i+1, m[1])
			}
		}
	}
}

// testNames are all tests, benchmarks and fuzz targets of the module.
func testNames(t *testing.T) map[string]bool {
	t.Helper()
	names := map[string]bool{}
	declared := regexp.MustCompile(`(?m)^func ((?:Test|Benchmark|Fuzz)[A-Za-z0-9_]+)\(`)
	err := filepath.WalkDir(root(t), func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == "out" || d.Name() == ".git" || d.Name() == "bin") {
			return filepath.SkipDir
		}
		if !strings.HasSuffix(path, "_test.go") {
			return nil
		}
		b, err := os.ReadFile(path)
		for _, m := range declared.FindAllStringSubmatch(string(b), -1) {
			names[m[1]] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}
