package runspec

import (
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
)

// Volume is a named volume that a container mounts.
type Volume struct {
	Name     string
	Path     string            // absolute and clean, in the container
	ReadOnly bool              //
	NoCopy   bool              // an empty one is not filled from the image
	Labels   map[string]string // of one that does not exist yet
}

// NamedVolumes are the named volumes of a container, by path: those of -v NAME:PATH and of --mount type=volume with a name.
// Errors: ErrInvalidArgument; ErrNotImplemented for what a volume can be asked for with docker only.
func NamedVolumes(hc *container.HostConfig) ([]Volume, error) {
	var list []Volume
	for _, bind := range hc.Binds {
		b, err := parseBind(bind)
		if err != nil {
			return nil, err
		}
		if !strings.HasPrefix(b.source, "/") {
			list = append(list, Volume{Name: b.source, Path: b.path, ReadOnly: b.readOnly, NoCopy: b.noCopy})
		}
	}
	for _, m := range hc.Mounts {
		if m.Type != mount.TypeVolume || m.Source == "" {
			continue
		}
		if err := checkDestination(m.Target); err != nil {
			return nil, err
		}
		v := Volume{Name: m.Source, Path: path.Clean(m.Target), ReadOnly: m.ReadOnly}
		if o := m.VolumeOptions; o != nil {
			v.NoCopy, v.Labels = o.NoCopy, o.Labels
		}
		list = append(list, v)
	}
	for _, v := range list {
		if !namePattern().MatchString(v.Name) {
			return nil, invalid("create %s: %q includes invalid characters for a local volume name, only \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are allowed. "+
				"If you intended to pass a host directory, use absolute path", v.Name, v.Name)
		}
	}
	slices.SortFunc(list, func(a, b Volume) int { return strings.Compare(a.Path, b.Path) })
	for i := range list[min(1, len(list)):] {
		if list[i].Path == list[i+1].Path {
			return nil, invalid("Duplicate mount point: %s", list[i].Path)
		}
	}
	return list, nil
}

func namePattern() *regexp.Regexp { return regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{1,199}$`) }

// bind is one word of -v: SOURCE:PATH[:MODE[,MODE…]].
type bind struct {
	source, path     string
	readOnly, noCopy bool
}

func parseBind(text string) (bind, error) {
	parts := strings.Split(text, ":")
	if len(parts) < 2 || len(parts) > 3 || parts[0] == "" {
		return bind{}, invalid("invalid volume specification: '%s'", text)
	}
	if err := checkDestination(parts[1]); err != nil {
		return bind{}, err
	}
	b := bind{source: parts[0], path: path.Clean(parts[1])}
	if len(parts) < 3 {
		return b, nil
	}
	for _, mode := range strings.Split(parts[2], ",") {
		switch mode {
		case "ro":
			b.readOnly = true
		case "nocopy":
			b.noCopy = true
		// Labels of SELinux, which no guest has; a propagation makes no difference where nobody else mounts anything.
		case "rw", "z", "Z", "", "private", "rprivate", "cached", "delegated", "consistent":
		case "shared", "rshared", "slave", "rslave":
			return bind{}, unsupported("the propagation %q of %s", mode, text)
		default:
			return bind{}, invalid("invalid mode: %s", parts[2])
		}
	}
	return b, nil
}
