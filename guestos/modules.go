package guestos

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Module is one kernel module on disk.
type Module struct {
	Name string // as lsmod prints it: underscores, no suffix
	Path string // NAME.ko, or NAME.ko.xz
}

// NeededModules names what a guest of cradle cannot do without on a modular kernel, in the order wanted. A name
// the kernel has built in costs nothing.
func NeededModules() []string {
	return []string{
		"virtio_mmio", "virtio_pci", // transports, before their devices
		"virtio_console", "virtio_rng", "virtio_scsi", "sd_mod", "virtio_blk", "virtio_net", "virtio_balloon",
		"erofs", "overlay", "squashfs", "fuse", "virtiofs",
		"crc32c_generic", "ext4", // ext4 asks for crc32c by its crypto name, which modules.dep does not show
		"vmw_vsock_virtio_transport", "af_packet",
	}
}

// NetfilterModules names what a firewall or a container engine inside the guest wants. They are left out unless
// asked for: each module is loaded at every cold boot.
func NetfilterModules() []string {
	return []string{
		"nf_tables", "nft_ct", "nft_nat", "nft_masq", "nft_redir", "nft_reject_inet", "nft_fib_inet", "nft_compat",
		"nft_chain_nat", "nft_limit", "nft_log", "nft_numgen", "nft_hash",
		"ip_tables", "iptable_filter", "iptable_nat", "ip6_tables", "ip6table_filter", "ip6table_nat",
		"xt_conntrack", "xt_MASQUERADE", "xt_addrtype", "xt_nat", "xt_mark", "xt_comment", "xt_multiport",
		"bridge", "br_netfilter", "veth", "tun", "dummy", "macvlan", "ipvlan", "vxlan", "8021q",
	}
}

// ResolveModules finds the named modules in tree, an unpacked /lib/modules/RELEASE, and returns them and all they
// depend on in an order in which they load. Built-in modules are skipped; names the tree has never heard of come
// back in missing.
func ResolveModules(tree string, names []string) (found []Module, missing []string, err error) {
	deps, err := readDeps(filepath.Join(tree, "modules.dep"))
	if err != nil {
		return nil, nil, fmt.Errorf("resolve modules: %w", err)
	}
	builtin, err := readBuiltin(filepath.Join(tree, "modules.builtin"))
	if err != nil {
		return nil, nil, fmt.Errorf("resolve modules: %w", err)
	}
	r := resolver{tree: tree, deps: deps, seen: map[string]bool{}}
	for _, name := range names {
		name = moduleName(name)
		if builtin[name] {
			continue
		}
		if _, ok := deps[name]; !ok {
			missing = append(missing, name)
			continue
		}
		if err := r.add(name); err != nil {
			return nil, nil, fmt.Errorf("resolve modules: %w", err)
		}
	}
	return r.order, missing, nil
}

// depEntry is one line of modules.dep.
type depEntry struct {
	path string   // relative to the tree
	on   []string // names
}

type resolver struct {
	tree  string
	deps  map[string]depEntry
	seen  map[string]bool
	order []Module
}

// add appends name after all it needs. Marking it seen first ends a cycle, which a sound tree does not have.
func (r *resolver) add(name string) error {
	if r.seen[name] {
		return nil
	}
	r.seen[name] = true
	e, ok := r.deps[name]
	if !ok {
		return fmt.Errorf("modules.dep names %s as a dependency and has no line for it", name)
	}
	for _, d := range e.on {
		if err := r.add(d); err != nil {
			return err
		}
	}
	r.order = append(r.order, Module{Name: name, Path: filepath.Join(r.tree, e.path)})
	return nil
}

// readDeps parses modules.dep: "path: path path…" a line, paths relative to the tree.
func readDeps(file string) (map[string]depEntry, error) {
	deps := map[string]depEntry{}
	err := eachLine(file, func(line string) error {
		path, rest, ok := strings.Cut(line, ":")
		if !ok || !filepath.IsLocal(path) {
			return fmt.Errorf("%s: bad line %q", file, line)
		}
		e := depEntry{path: path}
		// Depmod writes the nearest dependency first and its own dependencies after it: the reverse of load order.
		fields := strings.Fields(rest)
		for i := len(fields) - 1; i >= 0; i-- {
			e.on = append(e.on, moduleName(fields[i]))
		}
		deps[moduleName(path)] = e
		return nil
	})
	return deps, err
}

// readBuiltin parses modules.builtin, one path a line.
func readBuiltin(file string) (map[string]bool, error) {
	builtin := map[string]bool{}
	err := eachLine(file, func(line string) error {
		builtin[moduleName(line)] = true
		return nil
	})
	return builtin, err
}

func eachLine(file string, do func(line string) error) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	s := bufio.NewScanner(f)
	for s.Scan() {
		line := strings.TrimSpace(s.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		if err := do(line); err != nil {
			return err
		}
	}
	return s.Err()
}

// moduleName turns "kernel/fs/foo-bar.ko.xz" into "foo_bar", the form the kernel uses.
func moduleName(path string) string {
	name := filepath.Base(path)
	name, _, _ = strings.Cut(name, ".ko")
	return strings.ReplaceAll(name, "-", "_")
}

// read returns the module as the kernel wants it, not compressed.
func (m Module) read() ([]byte, error) {
	if !strings.HasSuffix(m.Path, ".xz") {
		return os.ReadFile(m.Path)
	}
	var stderr bytes.Buffer
	cmd := exec.Command("xz", "--decompress", "--stdout", "--", m.Path)
	cmd.Stderr = &stderr
	data, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("unpack %s: %w: %s", m.Path, err, bytes.TrimSpace(stderr.Bytes()))
	}
	return data, nil
}
