package repotest

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

const (
	maxFileLines     = 700 // rarely over 500
	maxFunctionLines = 130 // rarely over 80
)

// TestCode reads every Go file that is not a test.
func TestCode(t *testing.T) {
	for _, p := range packages(t) {
		if len(p.GoFiles) > 0 && p.Doc == "" {
			t.Errorf("%s has no package comment", p.ImportPath)
		}
		for _, name := range p.GoFiles {
			path := filepath.Join(p.Dir, name)
			files := token.NewFileSet()
			f, err := parser.ParseFile(files, path, nil, parser.ParseComments|parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			if ast.IsGenerated(f) {
				continue
			}
			checkFile(t, files, f)
		}
	}
}

func checkFile(t *testing.T, files *token.FileSet, f *ast.File) {
	t.Helper()
	at := func(n ast.Node) token.Position { return files.Position(n.Pos()) }
	if lines := files.Position(f.FileEnd).Line; lines > maxFileLines {
		t.Errorf("%s has %d lines: more than one idea?", at(f).Filename, lines)
	}
	written := assigned(f)
	for _, d := range f.Decls {
		switch d := d.(type) {
		case *ast.FuncDecl:
			if d.Recv == nil && d.Name.Name == "init" {
				t.Errorf("%s: no init functions: wire by hand", at(d))
			}
			if lines := files.Position(d.End()).Line - at(d).Line; lines > maxFunctionLines {
				t.Errorf("%s: %s has %d lines: more than one step?", at(d), d.Name.Name, lines)
			}
		case *ast.GenDecl:
			if d.Tok != token.VAR {
				continue
			}
			for _, s := range d.Specs {
				v := s.(*ast.ValueSpec)
				for _, name := range v.Names {
					if state := stateful(v); name.Name != "_" && (state || written[name.Name]) && !linknamed(d) {
						t.Errorf("%s: %s is global state", at(v), name.Name)
					}
				}
			}
		}
	}
	for _, group := range f.Comments {
		if regexp.MustCompile(`\b(TODO|FIXME|XXX|HACK)\b`).MatchString(group.Text()) {
			t.Errorf("%s: finish it, or leave it out", at(group))
		}
	}
}

// stateful tells whether a package-level variable can hold state by its type: one without a value, of a type that
// changes. Tables and sentinels have values; arrays without one are zeros.
func stateful(v *ast.ValueSpec) bool {
	if len(v.Values) > 0 {
		return false
	}
	_, array := v.Type.(*ast.ArrayType)
	return !array || v.Type.(*ast.ArrayType).Len == nil
}

// linknamed variables are another package's.
func linknamed(d *ast.GenDecl) bool {
	if d.Doc == nil {
		return false
	}
	for _, c := range d.Doc.List {
		if strings.HasPrefix(c.Text, "//go:linkname ") || strings.HasPrefix(c.Text, "//go:embed ") {
			return true
		}
	}
	return false
}

// assigned are the plain names that functions of f assign to without declaring them in f's functions: writes to
// package variables, in the file that has them.
func assigned(f *ast.File) map[string]bool {
	names := map[string]bool{}
	for _, d := range f.Decls {
		fn, ok := d.(*ast.FuncDecl)
		if !ok || fn.Body == nil {
			continue
		}
		local := map[string]bool{}
		ast.Inspect(fn, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.Field:
				for _, name := range n.Names {
					local[name.Name] = true
				}
			case *ast.ValueSpec:
				for _, name := range n.Names {
					local[name.Name] = true
				}
			case *ast.RangeStmt:
				for _, e := range []ast.Expr{n.Key, n.Value} {
					if id, ok := e.(*ast.Ident); ok && n.Tok == token.DEFINE {
						local[id.Name] = true
					}
				}
			case *ast.AssignStmt:
				for _, e := range n.Lhs {
					id, ok := e.(*ast.Ident)
					if ok && n.Tok == token.DEFINE {
						local[id.Name] = true
					} else if ok && !local[id.Name] {
						names[id.Name] = true
					}
				}
			}
			return true
		})
	}
	return names
}

// TestNoMachinePaths keeps paths of somebody's machine out of what is shipped.
func TestNoMachinePaths(t *testing.T) {
	somebodys := regexp.MustCompile(`(/home/[a-z]|/root/(go/|\.)|/work/(main|shared)|/Users/)`)
	for _, pattern := range []string{"*", "*/*", "*/*/*", "*/*/*/*", ".ci/*"} {
		paths, err := filepath.Glob(filepath.Join(root(t), pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range paths {
			rel, _ := filepath.Rel(root(t), path)
			if strings.HasPrefix(rel, ".git") || strings.HasPrefix(rel, "out") || strings.HasPrefix(rel, "bin") || strings.HasSuffix(rel, "_test.go") {
				continue
			}
			if info, err := os.Stat(path); err != nil || !info.Mode().IsRegular() || info.Size() > 1<<20 {
				continue
			}
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			for i, line := range strings.Split(string(b), "\n") {
				if m := somebodys.FindString(line); m != "" {
					t.Errorf("%s:%d: %q", rel, i+1, m)
				}
			}
		}
	}
}
