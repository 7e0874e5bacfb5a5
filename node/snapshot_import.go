package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/cradlevm/cradle/api"
	"github.com/cradlevm/cradle/image"
	"github.com/cradlevm/cradle/node/runspec"
	"github.com/cradlevm/cradle/sandbox"
	"github.com/cradlevm/cradle/snapshot"
	"github.com/cradlevm/cradle/vm"
)

// machineExtra is what the files of a machine may have together beyond its memory, bytes: its devices' state.
const machineExtra = 64 << 20

// maxLayers bounds the layers of an imported snapshot's image: QEMU's disks of a machine are fewer.
const maxLayers = 256

var (
	imageIDPattern     = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^sha256:[0-9a-f]{64}$`) })
	containerIDPattern = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[0-9a-f]{64}$`) })
)

// untrusted is said to who imports without trust.
const untrusted = "a snapshot from elsewhere is imported with --trust only: the virtual machine monitor takes the memory and the state " +
	"of devices in it for its own, the processes in it go on as they were, and it may hold another host's secrets. " +
	"Trust it as you would trust a program that runs as the monitor's user"

// SnapshotImport makes a snapshot of an archive that SnapshotExport has written, plain or compressed. Without a name it has
// the one that it had. trust says that the user has been told what that means. Nothing is left of what fails.
func (n *Node) SnapshotImport(ctx context.Context, name string, trust bool, r io.Reader) (s NamedSnapshot, err error) {
	if !trust {
		return s, invalid("%s", untrusted)
	}
	if err := n.enter(); err != nil {
		return s, err
	}
	defer n.running.Done()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(n.ctx, cancel)()
	m, err := n.importArchive(ctx, name, r)
	if errors.Is(err, snapshot.ErrArchive) {
		err = invalid("%v", err)
	}
	if err != nil {
		return s, fmt.Errorf("import snapshot: %w", err)
	}
	return n.describe(m), nil
}

func (n *Node) importArchive(ctx context.Context, name string, r io.Reader) (m namedManifest, err error) {
	plain, err := image.Decompress(r)
	if err != nil {
		return m, imageError(err)
	}
	defer plain.Close()
	var head archiveHead
	a, err := snapshot.NewArchiveReader(plain, &head)
	if err != nil {
		return m, err
	}
	if name != "" {
		head.Snapshot.Name = name
	}
	if m, err = n.welcome(ctx, head); err != nil {
		return m, err
	}
	draft, err := snapshot.NewDraft(n.shelf.dir)
	if err != nil {
		return m, err
	}
	defer func() { err = errors.Join(err, draft.Discard()) }()
	if err := n.unpack(ctx, a, m, draft.Dir); err != nil {
		return m, err
	}
	if err := n.sameLayers(ctx, head, m); err != nil {
		return m, err
	}
	from, err := n.load(ctx, m.savedManifest, draft.Dir, filepath.Join(draft.Dir, scratchName))
	if err != nil {
		return m, err
	}
	if err := from.saved.Close(); err != nil {
		return m, err
	}
	return m, n.shelve(draft, m)
}

// welcome says whether what an archive's head describes can be run here, before any of it is read.
func (n *Node) welcome(ctx context.Context, head archiveHead) (namedManifest, error) {
	if head.Format != archiveFormat {
		return namedManifest{}, invalid("its format is %d, this cradle knows %d", head.Format, archiveFormat)
	}
	m, err := n.portable(head.Snapshot)
	if err != nil {
		return m, err
	}
	if err := n.suits(ctx, m.savedManifest); err != nil {
		return m, err
	}
	if _, err := n.options.Images.Get(m.Source.ImageID); err != nil && !head.Image {
		return m, notFound("it needs image %s (%.19s), which is not there: load that first", m.Source.Config.Image, m.Source.ImageID)
	}
	n.shelf.mu.RLock()
	defer n.shelf.mu.RUnlock()
	return m, n.shelf.room(m.Name)
}

// unpack reads the parts of an archive: the files into dir, the image into the store, if it is not there.
func (n *Node) unpack(ctx context.Context, a *snapshot.ArchiveReader, m namedManifest, dir string) error {
	rest := m.Config.VM.Memory + machineExtra
	for range maxSnapshotFiles + 1 {
		part, err := a.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		path := filepath.Join(dir, part)
		switch {
		case part == imagePart:
			err = a.Stream(func(r io.Reader) error { return n.loadMissing(ctx, r, m.Source.ImageID) })
		case !fileName().MatchString(part) || part == snapshot.ManifestName:
			err = invalid("it has a part %q", part)
		case part == scratchName:
			var size int64
			if size, err = runspec.ScratchSize(&m.Source.HostConfig, n.settings); err == nil {
				err = a.File(ctx, path, size)
			}
		default:
			if err = a.File(ctx, path, rest); err == nil {
				rest, err = subtractSize(rest, path)
			}
		}
		if err != nil {
			return fmt.Errorf("%s: %w", part, err)
		}
	}
	return invalid("it has too many parts")
}

// subtractSize is what is left of rest without a file.
func subtractSize(rest int64, path string) (int64, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return 0, err
	}
	return max(0, rest-fi.Size()), nil
}

// loadMissing puts an image into the store if it is not there. It gets no name: those here are not the archive's to give.
func (n *Node) loadMissing(ctx context.Context, r io.Reader, id string) error {
	if _, err := n.options.Images.Get(id); err == nil {
		return nil
	}
	_, err := n.options.Images.LoadUnnamed(ctx, r, id)
	return imageError(err)
}

// sameLayers says whether the image's layers are those that the saved guest has mounted, byte for byte.
func (n *Node) sameLayers(ctx context.Context, head archiveHead, m namedManifest) error {
	layers, err := n.layersOf(ctx, m.Source.ImageID)
	if err != nil {
		return err
	}
	var disks []vm.Disk
	for i, l := range layers {
		disks = append(disks, vm.Disk{Serial: layerSerial(i), Path: l.Path, ReadOnly: true})
	}
	disks = append(disks, vm.Disk{Serial: scratchSerial})
	if !slices.EqualFunc(disks, m.Config.VM.Disks, sameDisk) {
		return invalid("its disks are not those of its image")
	}
	sums, err := n.layerDigests(ctx, m.Source.ImageID)
	if err != nil {
		return err
	}
	if !slices.Equal(sums, head.Layers) {
		return conflict("the layers of its image are not, byte for byte, what this cradle makes of them: it was saved with another version")
	}
	return nil
}

// portable is what of a manifest means something on another host, checked as if that were a hostile one.
func (n *Node) portable(m namedManifest) (out namedManifest, err error) {
	s, c := m.Source, m.Config.VM
	switch name := strings.TrimPrefix(s.Name, "/"); {
	case !snapshotName().MatchString(m.Name):
		return out, invalid("invalid name of a snapshot: %q", m.Name)
	case !imageIDPattern().MatchString(s.ImageID) || !containerIDPattern().MatchString(m.Guest):
		return out, invalid("invalid ids: image %q, container %q", s.ImageID, m.Guest)
	case !namePattern().MatchString(name) || len(name) > 1024:
		return out, invalid("invalid name of a container: %q", name)
	case s.HostConfig.NetworkMode.IsContainer() || s.HostConfig.IpcMode.IsContainer() || s.HostConfig.PidMode.IsContainer():
		return out, conflict("its container shares something with another container, which is not in it")
	case c.CPUs < 1 || c.CPUs > n.settings.MaxCPUs:
		return out, conflict("its machine has %d CPUs, and this host %d", c.CPUs, n.settings.MaxCPUs)
	case c.Memory < vm.MinMemory || c.Memory > vm.MaxMemory || c.Memory%(1<<20) != 0 || len(c.NICs) != nicSlots || len(c.Disks) > maxLayers+1:
		return out, invalid("no machine has %d bytes of memory, %d network interfaces and %d disks", c.Memory, len(c.NICs), len(c.Disks))
	}
	prepared, _, err := runspec.Prepare(m.Guest, &s.Config, &s.HostConfig, n.settings)
	if err != nil {
		return out, err
	}
	source := record{Name: s.Name, ImageID: s.ImageID, Config: *prepared.Config, HostConfig: *prepared.Host, Platform: "linux"}
	if source.Links, err = portableLinks(s.Links); err != nil {
		return out, err
	}
	if source.Policy, err = portablePolicy(s.Policy); err != nil {
		return out, err
	}
	if len(source.namedVolumes())+len(source.fileBinds()) > 0 { // a file would be this host's
		return out, conflict("its container has a volume, or a file of its host's, which is not in it")
	}
	machine := vm.Config{CPUs: c.CPUs, Memory: c.Memory, NICs: make([]vm.NIC, nicSlots)}
	for _, d := range c.Disks {
		path := ""
		if d.ReadOnly {
			path = filepath.Base(d.Path)
		}
		machine.Disks = append(machine.Disks, vm.Disk{Serial: d.Serial, Path: path, ReadOnly: d.ReadOnly})
	}
	return namedManifest{
		Name: m.Name, Created: m.Created, Source: source,
		savedManifest: savedManifest{
			Form: m.Form, Guest: m.Guest, Digest: m.Digest, Scratch: m.Scratch,
			Config: sandbox.Config{VM: machine, Token: m.Config.Token},
		},
	}, nil
}

// portableLinks are the links without what was the other host's. Whether there are such networks here, the start tells.
func portableLinks(links []link) ([]link, error) {
	if len(links) > nicSlots {
		return nil, invalid("%d networks: a container can be on %d", len(links), nicSlots)
	}
	out := ownLinks(links)
	for i, l := range out {
		if !namePattern().MatchString(l.Name) || slices.ContainsFunc(out[:i], func(other link) bool { return other.Name == l.Name }) {
			return nil, invalid("invalid name of a network: %q", l.Name)
		}
		if err := runspec.CheckEndpoint(&l.Settings); err != nil {
			return nil, err
		}
		p, err := portablePolicy(l.Policy)
		if err != nil {
			return nil, err
		}
		out[i].Policy = p
	}
	return out, nil
}

// portablePolicy is a network policy without what it opens of the host's own services: those of the other host were meant.
func portablePolicy(p *api.NetworkPolicy) (*api.NetworkPolicy, error) {
	if p == nil {
		return nil, nil
	}
	if _, err := compilePolicy(p); err != nil {
		return nil, err
	}
	out := *p
	out.Rules = slices.DeleteFunc(slices.Clone(p.Rules), func(r api.PolicyRule) bool {
		place, _, _, err := splitTarget(r.Allow)
		return err == nil && place == "host"
	})
	return &out, nil
}
