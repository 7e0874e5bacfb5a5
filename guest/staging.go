package guest

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/cradlevm/cradle/api"
	"github.com/cradlevm/cradle/guest/files"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// setNames sets the calling thread's UTS namespace; an empty name stays the guest's.
func setNames(host, domain string) error {
	if host != "" {
		if err := unix.Sethostname([]byte(host)); err != nil {
			return api.Errorf(api.CodeInvalid, "hostname %.80q: %w", host, err)
		}
	}
	if domain != "" {
		if err := unix.Setdomainname([]byte(domain)); err != nil {
			return api.Errorf(api.CodeInvalid, "domainname %.80q: %w", domain, err)
		}
	}
	return nil
}

// stageVolumes stages all volumes of a request, parents before children. nodes are the devices of those with disks.
func stageVolumes(r *api.CreateRequest, nodes []string) ([]*graft, error) {
	list, err := stageOwnVolumes(r.Volumes)
	if err != nil {
		return nil, err
	}
	for i, v := range r.VolumeDisks {
		g, err := stageDisk(v, nodes[i], "v"+strconv.Itoa(i))
		if err != nil {
			return nil, err
		}
		list = append(list, g)
	}
	slices.SortFunc(list, func(a, b *graft) int { return strings.Compare(a.path, b.path) })
	return list, nil
}

// stageDisk mounts a volume's disk at dir. Like docker it fills a volume that is empty.
func stageDisk(v api.VolumeDisk, node, dir string) (*graft, error) {
	if err := mountDisk(node, dir, v.Disk, 0); err != nil {
		return nil, err
	}
	data := dir + "/data"
	if err := unix.Mkdir(data, 0o755); err != nil && err != unix.EEXIST {
		return nil, api.Errorf(api.CodeInternal, "volume %s: %w", v.Path, err)
	}
	empty, err := isEmpty(data)
	if err != nil {
		return nil, api.Errorf(api.CodeInternal, "volume %s: %w", v.Path, err)
	}
	if empty && !v.NoCopy {
		if err := fillVolume(v.Path, data); err != nil {
			return nil, api.Errorf(api.CodeInternal, "volume %s: %w", v.Path, err)
		}
	}
	tree, err := openTree(data)
	if err != nil {
		return nil, err
	}
	if v.ReadOnly {
		if err := makeReadOnly(tree); err != nil {
			return nil, fmt.Errorf("volume %s: %w", v.Path, err)
		}
	}
	return &graft{path: v.Path, tree: tree, dir: true}, nil
}

// isEmpty tells whether a directory has no entries.
func isEmpty(dir string) (bool, error) {
	f, err := os.Open(dir)
	if err != nil {
		return false, err
	}
	defer f.Close()
	_, err = f.Readdirnames(1)
	if err == io.EOF {
		return true, nil
	}
	return false, err
}

// stageOwnVolumes makes a directory on the upper filesystem for each volume, filled with what the image has at its path.
// One that is there already, from an earlier life of the container, is left as it is.
func stageOwnVolumes(paths []string) ([]*graft, error) {
	var list []*graft
	for _, p := range paths {
		name := "u/volumes/" + strings.NewReplacer("%", "%25", "/", "%2F").Replace(p)
		if err := unix.Access(name, 0); err != nil {
			if err := fillVolume(p, name); err != nil {
				return nil, api.Errorf(api.CodeInternal, "volume %s: %w", p, err)
			}
		}
		tree, err := openTree(name)
		if err != nil {
			return nil, err
		}
		list = append(list, &graft{path: p, tree: tree, dir: true})
	}
	return list, nil
}

// fillVolume copies under another name and renames, so that a volume that exists is a whole one.
func fillVolume(p, name string) error {
	part := name + ".part"
	if err := os.RemoveAll(part); err != nil {
		return err
	}
	if err := unix.Mkdir(part, 0o755); err != nil {
		return err
	}
	root, err := unix.Open("root", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(root)
	how := unix.OpenHow{Flags: unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	from, err := unix.Openat2(root, strings.TrimPrefix(p, "/"), &how)
	switch err {
	case nil:
		defer unix.Close(from)
		to, err := unix.Open(part, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(to)
		if err := files.CopyTree(from, to); err != nil {
			return err
		}
	case unix.ENOENT, unix.ENOTDIR, unix.ELOOP:
		// The image has nothing to fill it with.
	default:
		return err
	}
	return unix.Rename(part, name)
}

// mountDisks lists the serials of the disks that mounts of the spec name.
func mountDisks(mounts []specs.Mount) []string {
	var serials []string
	for _, m := range mounts {
		if m.Type == "ext4" || m.Type == "erofs" {
			serials = append(serials, m.Source)
		}
	}
	return serials
}

var rootPropagation = map[string]uintptr{
	"": 0, "private": unix.MS_PRIVATE, "rprivate": unix.MS_PRIVATE | unix.MS_REC,
	"shared": unix.MS_SHARED, "rshared": unix.MS_SHARED | unix.MS_REC,
	"slave": unix.MS_SLAVE, "rslave": unix.MS_SLAVE | unix.MS_REC,
	"unbindable": unix.MS_UNBINDABLE, "runbindable": unix.MS_UNBINDABLE | unix.MS_REC,
}

// finishRoot applies what must come last to the root mount.
func finishRoot(s *specs.Spec) error {
	p, ok := rootPropagation[s.Linux.RootfsPropagation]
	if !ok {
		return api.Errorf(api.CodeInvalid, "linux.rootfsPropagation: %.40q", s.Linux.RootfsPropagation)
	}
	if p != 0 {
		if err := unix.Mount("", "/", "", p, ""); err != nil {
			return fmt.Errorf("set root propagation: %w", err)
		}
	}
	if s.Root != nil && s.Root.Readonly {
		if err := unix.Mount("", "/", "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""); err != nil {
			return fmt.Errorf("make the root read-only: %w", err)
		}
	}
	return nil
}
