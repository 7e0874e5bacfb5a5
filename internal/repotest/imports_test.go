package repotest

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const module = "github.com/cradlevm/cradle"

// rule says which packages of ours, and which modules of others, the packages under a path may import.
type rule struct {
	pkg string // below the module; also stands for what is below it, unless that has a rule of its own
	may []string
	// others, when not nil, is all the package may import from outside the module and the standard library, by prefix.
	others []string
}

// rules is docs/architecture.md's table of packages. Arrows point down only.
func rules() []rule {
	none := []string{}
	return []rule{
		{pkg: "cmd", may: []string{"shim", "guest"}}, // a program is flags and one package; cmd/cradle wires all
		{pkg: "cmd/cradle", may: []string{"..."}},
		{pkg: "cmd/cradle/front", others: []string{"github.com/docker/cli/cli/version"}}, // it is there before all others are; those are strings
		{pkg: "api", others: []string{"github.com/opencontainers/runtime-spec"}},
		{pkg: "api/wire", may: []string{"api"}, others: []string{"github.com/hashicorp/yamux"}},
		{pkg: "vm", may: []string{"api"}, others: none},
		{pkg: "vm/fork", others: []string{"golang.org/x/sys"}},
		{pkg: "vm/qemu", may: []string{"vm", "vm/fork", "api"}, others: []string{"golang.org/x/sys"}},
		{pkg: "vm/cloudhypervisor", may: []string{"vm", "api"}, others: []string{"golang.org/x/sys"}},
		{pkg: "vm/firecracker", may: []string{"vm", "api"}, others: []string{"golang.org/x/sys"}},
		{pkg: "vm/vmtest", may: []string{"vm", "vm/vmtest", "api", "api/wire"}},
		{pkg: "guestos", others: none},
		{pkg: "erofs", others: none},
		{pkg: "image", may: []string{"erofs"}},
		{pkg: "network", may: []string{"network"}},
		{pkg: "network/egress", others: none},
		{pkg: "network/pod", may: []string{"network/bpf", "network/dump", "api"}},
		{pkg: "volume", others: []string{"golang.org/x/sys"}},
		{pkg: "seccomp", others: []string{"github.com/moby/profiles/seccomp", "github.com/opencontainers/runtime-spec", "golang.org/x/sys"}},
		{pkg: "guest", may: []string{"api", "api/wire", "guest"}, others: []string{"github.com/opencontainers/runtime-spec", "golang.org/x/sys"}},
		{pkg: "snapshot", others: []string{"golang.org/x/sys"}},
		{pkg: "pool", may: []string{"sandbox", "snapshot", "vm", "guestos", "erofs", "api", "api/wire"}},
		{pkg: "sandbox", may: []string{"vm", "image", "network", "volume", "api", "api/wire"}},
		{pkg: "node", may: []string{"sandbox", "snapshot", "vm", "pool", "image", "network", "volume", "api", "guestos", "seccomp", "dockerapi", "node"}},
		{pkg: "node/logfile", may: []string{"api"}, others: none},
		{pkg: "node/runspec", may: []string{"api", "seccomp"}},
		{pkg: "dockerapi"},
		{pkg: "shim", may: []string{"api", "sandbox", "network/pod"}},
		{pkg: "hack", may: []string{"..."}},
		{pkg: "test", may: []string{"..."}},
		{pkg: "internal"},
	}
}

// goPackage is what `go list -json` says of a package.
type goPackage struct {
	ImportPath, Dir, Doc, Name string
	Imports                    []string
	GoFiles                    []string
}

// packages are the module's packages.
func packages(t *testing.T) []goPackage {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Dir,Doc,Name,Imports,GoFiles", "./...")
	cmd.Dir = root(t)
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			t.Fatalf("go list: %v\n%s", err, exit.Stderr)
		}
		t.Fatal(err)
	}
	var all []goPackage
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p goPackage
		err := d.Decode(&p)
		if err == io.EOF {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

// root is the top of the checkout.
func root(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestImportDirection(t *testing.T) {
	for _, p := range packages(t) {
		name := strings.TrimPrefix(strings.TrimPrefix(p.ImportPath, module), "/")
		r, ok := ruleFor(name)
		if !ok {
			t.Errorf("package %s has no rule: say in rules (and in docs/architecture.md) what it owns and may import", name)
			continue
		}
		for _, imported := range p.Imports {
			if why := r.refuses(name, imported); why != "" {
				t.Errorf("%s imports %s: %s", name, imported, why)
			}
		}
	}
}

// ruleFor is the rule with the longest path that name is at or below.
func ruleFor(name string) (rule, bool) {
	var best rule
	for _, r := range rules() {
		if (name == r.pkg || strings.HasPrefix(name, r.pkg+"/")) && len(r.pkg) > len(best.pkg) {
			best = r
		}
	}
	return best, best.pkg != ""
}

// refuses says why the package name may not import path, or nothing.
func (r rule) refuses(name, path string) string {
	if ours, ok := strings.CutPrefix(path, module+"/"); ok {
		for _, may := range r.may {
			if may == "..." || ours == may || may == r.pkg && strings.HasPrefix(ours, may+"/") {
				return ""
			}
		}
		// A package and what is below it are one thing, as long as the arrows point down.
		if strings.HasPrefix(ours, name+"/") {
			return ""
		}
		return "the arrows do not point that way"
	}
	first, _, _ := strings.Cut(path, "/")
	if !strings.Contains(first, ".") || r.others == nil {
		return ""
	}
	for _, other := range r.others {
		if path == other || strings.HasPrefix(path, other+"/") {
			return ""
		}
	}
	return "not among the few modules this package may use"
}
