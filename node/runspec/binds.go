package runspec

import (
	"path"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
)

// FileBind is a file of the host's that a container sees as it was when it started: a read-only bind mount.
type FileBind struct {
	Source string // absolute, on the host
	Path   string // absolute and clean, in the container
}

// FileBinds are the read-only bind mounts of a container, by path. That their sources are files is for who opens them to see.
// Errors: ErrInvalidArgument; ErrNotImplemented for bind mounts that can be written to: nothing would come back to the host.
func FileBinds(hc *container.HostConfig) ([]FileBind, error) {
	var list []FileBind
	for _, text := range hc.Binds {
		b, err := parseBind(text)
		switch {
		case err != nil:
			return nil, err
		case !strings.HasPrefix(b.source, "/"): // a named volume
		case !b.readOnly:
			return nil, unsupported("the writable bind mount %q (a single file can be mounted read-only, with :ro)", text)
		default:
			list = append(list, FileBind{path.Clean(b.source), b.path})
		}
	}
	for _, m := range hc.Mounts {
		if m.Type != mount.TypeBind {
			continue
		}
		if err := checkDestination(m.Target); err != nil {
			return nil, err
		}
		switch o := m.BindOptions; {
		case !strings.HasPrefix(m.Source, "/"):
			return nil, invalid("invalid mount config for type \"bind\": invalid mount path: '%s' mount path must be absolute", m.Source)
		case m.VolumeOptions != nil || m.TmpfsOptions != nil || m.ImageOptions != nil || m.ClusterOptions != nil:
			return nil, invalid("invalid mount config for type \"bind\": options of another mount type")
		case o != nil && o.Propagation != "" && o.Propagation != mount.PropagationRPrivate && o.Propagation != mount.PropagationPrivate:
			return nil, unsupported("the propagation %q of %s", o.Propagation, m.Source)
		case !m.ReadOnly:
			return nil, unsupported("the writable bind mount of %q at %s (a single file can be mounted read-only)", m.Source, m.Target)
		}
		list = append(list, FileBind{path.Clean(m.Source), path.Clean(m.Target)})
	}
	slices.SortFunc(list, func(a, b FileBind) int { return strings.Compare(a.Path, b.Path) })
	for i := range list[min(1, len(list)):] {
		if list[i].Path == list[i+1].Path {
			return nil, invalid("Duplicate mount point: %s", list[i].Path)
		}
	}
	return list, nil
}
