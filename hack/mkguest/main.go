// Mkguest makes a guest directory (kernel, initrd, release, manifest) from a bzImage, an unpacked module tree when
// the kernel is a modular one, and the agent:
//
//	go run ./hack/mkguest -kernel bzImage [-modules lib/modules/RELEASE] -init bin/cradle-init -o DIR
package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/cradlevm/cradle/guestos"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "mkguest:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	flags := flag.NewFlagSet("mkguest", flag.ExitOnError)
	kernel := flags.String("kernel", "", "bzImage `file`")
	tree := flags.String("modules", "", "`dir` of an unpacked /lib/modules/RELEASE, or one that holds exactly one such")
	netfilter := flags.Bool("netfilter", false, "also put netfilter, bridge and tunnel modules in (for engines inside the guest)")
	agent := flags.String("init", "", "the static agent `program`, /init of the guest")
	out := flags.String("o", "", "guest `dir` to make")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *kernel == "" || *agent == "" || *out == "" || flags.NArg() != 0 {
		return fmt.Errorf("want -kernel, -init and -o, and no other arguments")
	}
	var modules []guestos.Module
	if *tree != "" {
		var err error
		if modules, err = resolve(*tree, *netfilter); err != nil {
			return err
		}
	}
	g, err := guestos.Build(*out, *kernel, "", modules, *agent)
	if err != nil {
		return err
	}
	fmt.Printf("%s: Linux %s, %d modules, %s\n", *out, g.Release, len(modules), g.Digest)
	return nil
}

func resolve(tree string, netfilter bool) ([]guestos.Module, error) {
	tree, err := moduleTree(tree)
	if err != nil {
		return nil, err
	}
	names := guestos.NeededModules()
	if netfilter {
		names = append(names, guestos.NetfilterModules()...)
	}
	modules, missing, err := guestos.ResolveModules(tree, names)
	if len(missing) > 0 {
		fmt.Fprintln(os.Stderr, "mkguest: this kernel has no", strings.Join(missing, ", "))
	}
	return modules, err
}

// moduleTree accepts /lib/modules as well as /lib/modules/RELEASE.
func moduleTree(dir string) (string, error) {
	if _, err := os.Stat(filepath.Join(dir, "modules.dep")); err == nil {
		return dir, nil
	}
	found, err := filepath.Glob(filepath.Join(dir, "*", "modules.dep"))
	if err != nil {
		return "", err
	}
	if len(found) != 1 {
		return "", fmt.Errorf("%s: want one modules.dep in or below it, found %d", dir, len(found))
	}
	return filepath.Dir(found[0]), nil
}
